"""What devices send each other, read off the compiled programs."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import Llama
from llama_jax.generate import advance
from llama_jax.model import Cache
from llama_jax.run import _program
from tests.parallel.meshes import CONFIG

pytestmark = pytest.mark.usefixtures("many_devices")

LAYERS, ROWS, POSITIONS = CONFIG.num_hidden_layers, 8, 28
SENT = re.compile(
    r" = (.+?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("
)
LAYOUT = re.compile(r"\{[^}]*\}")  # of an array in memory, behind its shape


def sent_by(program):
    """Kind and shape of everything that a program sends, in its order."""
    found = map(SENT.search, program.compile().as_text().splitlines())
    return [(match[2], LAYOUT.sub("", match[1])) for match in found if match]


def sent(mesh, logits="all"):
    """By one run."""
    leaves, structure = jax.tree.flatten(Llama.abstract(CONFIG, "float32", mesh).model)
    tokens, lengths = np.zeros((ROWS, POSITIONS), np.int32), np.full(ROWS, POSITIONS, np.int32)
    return sent_by(_program.lower(structure, tuple(leaves), tokens, lengths, {}, logits))


def sent_by_a_step(mesh):
    """By one new token of each row, behind a cache."""
    llama = Llama.abstract(CONFIG, "float32", mesh)
    leaves, structure = jax.tree.flatten(llama.model)
    parts = NamedSharding(llama.mesh, P(("data", "fsdp"), "sequence", "tensor"))
    keys = (jax.ShapeDtypeStruct((ROWS, 128, 8, 8), np.float32, sharding=parts),) * LAYERS
    everywhere = NamedSharding(llama.mesh, P())
    lengths = jax.ShapeDtypeStruct((ROWS,), np.int32, sharding=everywhere)
    new = np.zeros((ROWS, 1), np.int32), np.ones(ROWS, np.int32)
    cache = Cache(keys, keys, lengths)
    return sent_by(advance.lower(structure, tuple(leaves), cache, *new, {}))


@pytest.mark.parametrize("mesh", ["tensor=4", "tensor=8", "tensor=16"])
def test_on_tensor_alone_the_stream_is_summed_twice_a_layer_and_once_for_the_embedding(mesh):
    assert sent(mesh) == [("all-reduce", "f32[8,28,128]")] * (2 * LAYERS + 1)
    assert sent(mesh, "last") == [("all-reduce", "f32[8,28,128]")] * (2 * LAYERS + 1)
    assert sent_by_a_step(mesh) == [("all-reduce", "f32[8,1,128]")] * (2 * LAYERS + 1)


def test_on_data_alone_nothing_is_sent():
    assert not sent("data=8") and not sent("data=8", "last") and not sent_by_a_step("data=8")


def test_on_sequence_keys_and_values_are_gathered_once_a_layer():
    gathered = [("all-gather", "f32[8,28,8,8]")] * (2 * LAYERS)
    assert sent("sequence=4") == gathered
    # Of each row the last position lies on one device, and all are to know it.
    assert sorted(sent("sequence=4", "last")) == [*gathered, ("all-reduce", "f32[8,1,128]")]


def test_on_sequence_a_new_token_s_attention_is_put_together_and_no_cache_is_sent():
    largest, total, weighed = "f32[8,16,1]", "f32[8,16,1]", "f32[8,8,2,1,8]"
    expected = [("all-reduce", shape) for shape in (largest, total, weighed)] * LAYERS
    assert sorted(sent_by_a_step("sequence=4")) == sorted(expected)


def test_on_all_of_them_each_sends_what_it_sends_alone():
    found = sent("data=2,sequence=2,tensor=4")
    stream, keys = ("all-reduce", "f32[4,14,128]"), ("all-gather", "f32[4,28,2,8]")
    assert sorted(found) == sorted([stream] * (2 * LAYERS + 1) + [keys] * (2 * LAYERS))
    kinds = [kind for kind, _ in sent_by_a_step("data=2,sequence=2,tensor=4")]
    assert kinds == ["all-reduce"] * (5 * LAYERS + 1)


@pytest.mark.parametrize("step", [False, True], ids=["run", "step"])
def test_on_fsdp_weights_are_gathered_and_activations_are_not(step):
    found = (sent_by_a_step if step else sent)("data=2,fsdp=2,tensor=2")
    in_layer = {"q": [64, 128], "k": [32, 128], "v": [32, 128], "o": [128, 64]}
    in_layer |= {"gate": [40, 128], "up": [40, 128], "down": [128, 40]}
    gathered = [*list(in_layer.values()) * LAYERS, [48, 128], [48, 128]]
    shapes = [shape for kind, shape in found if kind == "all-gather"]
    assert sorted(shapes) == sorted(f"f32[{a},{b}]" for a, b in gathered)
    stream = "f32[2,1,128]" if step else "f32[2,28,128]"
    summed = [each for each in found if each[0] != "all-gather"]
    assert summed == [("all-reduce", stream)] * (2 * LAYERS + 1)
