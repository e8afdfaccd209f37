"""Everything that a Llama does, on meshes: the same as on one device, and laid out by the rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax import Ablate, Capture, Llama, Patch, Replace, Steer, analysis, generate
from llama_jax.model import attention, forward, leaves_of, parameters
from llama_jax.points import point_of
from llama_jax.tune import Batch, next_token_loss, train
from tests.parallel.meshes import (
    CACHE,
    COMPUTED,
    CONFIG,
    MESHES,
    TIED,
    close,
    lies,
    point_lies,
    weight_lies,
)
from tests.tiny import compiled

pytestmark = pytest.mark.usefixtures("many_devices")

rng = np.random.default_rng(0)


def rows(*lengths):
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


EVEN = rows(28, 3, 28, 17, 9, 28, 1, 22)  # every mesh divides 8 rows and 28 positions
ODD, OTHER = rows(21, 9, 14), rows(21, 9, 14)  # few divide 3 rows, none 21 positions
PACKED = Batch(
    np.array(rows(*[28] * 8), np.int32),
    rng.integers(0, 2, (8, 27)).astype(np.float32),
    np.sort(rng.integers(0, 3, (8, 28))).astype(np.int32),
)
UNEVEN = Batch(np.array(rows(21, 21, 21), np.int32))

FULL = "data=2,fsdp=2,tensor=2"
# These differentiate and learn from batches that they do not divide, the others from even ones.
UNDIVIDED = ("data=8", "sequence=4", "data=4,tensor=2", "data=2,sequence=2,tensor=4")

WHOLE = ("embed", "q_rot", "k_rot", "scores", "pattern", "head_out", "act", "resid_post", "logits")
REDUCED = (
    Capture("resid_mid", reduce="norm"),
    Capture("resid_pre", reduce="last"),
    Capture("gate", reduce=("topk", 3)),
    Capture("self_attn.out", reduce=("max_pool", 5)),
    Capture("k", heads=[2, 5], positions=[-1, 0]),
    Capture("z", heads=3),
)
EDITED = ("k_rot", "z", "head_out", "pattern", "act", "resid_mid", "resid_post")


def louder(x):
    return 1.5 * x


def third(logits):
    return logits[:, 3]


class Answers:
    """What a Llama says, each thing made when it is first asked for."""

    def __init__(self, config, mesh):
        if mesh is None:
            self.llama = Llama.random(config, std=0.15)
        else:
            weights = parameters(answers(config, None).llama.model)
            self.llama = Llama.abstract(config, "float32", mesh)
            for name, slot in parameters(self.llama.model).items():
                place = slot.get_value().sharding
                slot.set_value(jax.device_put(weights[name].get_value(), place))

    @functools.cached_property
    def run(self):
        return self.llama.run(EVEN, (*WHOLE, *REDUCED))

    @functools.cached_property
    def last(self):
        return self.llama.run(OTHER, (("z", 1), ("resid_post", 0)), logits="last")

    @functools.cached_property
    def edited(self):
        edits = [
            Ablate("k_rot", heads=[0, 7], positions=[1]),
            Ablate(("z", 0), heads=[3, 12], positions=[2, -1], to="mean"),
            Ablate(("pattern", 1), heads=[5]),
            Patch(("z", 1), self.last, heads=[1, 14]),
            Patch(("resid_post", 0), self.last, positions=[-1]),
            Ablate(("head_out", 0), heads=[9]),
            Steer("resid_mid", np.linspace(-1, 1, 128), 0.5, positions=slice(3, 7)),
            Replace("act", louder),
        ]
        return self.llama.run(ODD, EDITED, edits)

    @functools.cached_property
    def text(self):
        return self.llama.generate(ODD, 5, temperature=0, capture=("pattern", 1))


answers = functools.cache(Answers)


@functools.cache
def gradients(mesh, undivided):
    llama = answers(CONFIG, mesh).llama
    points = ("resid_post", "pattern", "act", *parameters(llama.model))
    return llama.gradients(ODD if undivided else EVEN, third, points)


@functools.cache
def trained(config, mesh, undivided=False):
    return Trained(answers(config, mesh).llama, UNEVEN if undivided else PACKED)


# Adam divides by the gradient's size plus eps: with a small one, what rounding left of a gradient
# of almost 0 would make a whole step.
ADAM = optax.adamw(1e-2, eps=1e-2)


class Trained:
    """Two steps: after each the loss, the norm and the weights; in the end the state."""

    def __init__(self, llama, batch):
        model = llama.edited({}).model  # the same arrays in a tree of its own
        self.losses, self.weights, self.programs = [], [], []
        steps = train(model, [batch] * 2, ADAM, 2, progress=False)
        for _ in range(2):
            with compiled() as programs:
                self.state = next(steps)
            self.losses.append((self.state.loss, self.state.gradient_norm))
            self.weights.append({n: np.array(p.get_value()) for n, p in parameters(model).items()})
            self.programs.append(programs)
        self.moments = self.state.optimizer_state[0]


REST = [pytest.param(mesh, marks=pytest.mark.soak) for mesh in MESHES if mesh not in COMPUTED]


@pytest.fixture(scope="module", params=[*COMPUTED, *REST], ids=lambda mesh: mesh or "one device")
def mesh(request):
    return request.param


@pytest.fixture(scope="module")
def one():
    return answers(CONFIG, None)


@pytest.fixture(scope="module")
def many(mesh):
    return answers(CONFIG, mesh)


def alike(found, expected, within=5e-5):
    assert list(found) == list(expected)
    for name in expected:
        same = functools.partial(close, what=name, within=within)
        jax.tree.map(same, found[name], expected[name])


def test_weights_lie_by_the_rules(mesh, many):
    for name, slot in parameters(many.llama.model).items():
        weight_lies(slot.get_value(), name, mesh)


def test_a_run_gives_what_one_device_gives(one, many):
    assert many.run.logits.shape == (8, 28, 96)
    close(many.run.logits, one.run.logits)
    alike(many.run.captured, one.run.captured)


def test_captures_stay_where_their_tensors_lie(mesh, many):
    point_lies(many.run.logits, "B T V", mesh)
    for name in many.run.names:
        if many.run.captures[name].whole:
            point_lies(many.run.captured[name], point_of(name).axes, mesh, name)
    for layer in range(2):
        point_lies(many.run["resid_mid", layer], "B T", mesh, "norm")
        point_lies(many.run["gate", layer].indices, "B T 1", mesh, "topk")


def test_rows_and_positions_that_the_mesh_does_not_divide_are_no_trouble(one, many):
    assert many.last.logits.shape == (3, 1, 96)
    assert many.last["z"].shape == (3, 21, 16, 8)
    close(many.last.logits, one.last.logits)
    alike(many.last.captured, one.last.captured)


def test_edits_change_what_they_change_on_one_device(one, many):
    assert many.edited.logits.shape == (3, 21, 96)
    assert np.abs(np.asarray(one.edited.logits - one.llama.run(ODD).logits)).max() > 1
    close(many.edited.logits, one.edited.logits)
    alike(many.edited.captured, one.edited.captured)


def test_gradients_are_those_of_one_device_and_lie_as_what_they_are_of(mesh):
    undivided = mesh in UNDIVIDED
    found, expected = (gradients(on, undivided) for on in (mesh, None))
    close(found.metric, expected.metric)
    alike(found, expected)
    for name, array in found.items():
        if name.endswith(".weight"):
            weight_lies(array, name, mesh)
        elif not undivided:
            point_lies(array, point_of(name).axes, mesh, name)


def test_a_text_is_written_token_for_token(one, many):
    np.testing.assert_array_equal(many.text.tokens, one.text.tokens)
    np.testing.assert_array_equal(many.text.lengths, one.text.lengths)
    close(many.text.logprobs, one.text.logprobs)
    alike(many.text.captured, one.text.captured)
    assert many.text["pattern"].shape == (3, 16, 25, 25)


def test_the_cache_lies_by_the_rules_from_step_to_step(mesh, many, monkeypatch):
    steps, expected, advance = [], many.text.tokens, generate.advance

    def watched(structure, leaves, cache, *others):
        made = advance(structure, leaves, cache, *others)
        for array in (*made[1].keys, *made[1].values):
            lies(array, *CACHE[mesh])
        steps.append(made)
        return made

    monkeypatch.setattr(generate, "advance", watched)
    with compiled() as programs:
        again = many.llama.generate(ODD, 5, temperature=0, capture=("pattern", 1))
    np.testing.assert_array_equal(again.tokens, expected)
    assert len(steps) == 5 and not programs


def test_training_learns_the_same(mesh):
    found, expected = (trained(CONFIG, on, mesh in UNDIVIDED) for on in (mesh, None))
    close(found.losses, expected.losses)
    for step in (0, 1):  # in which a weight changes by a hundredth
        alike(found.weights[step], expected.weights[step], within=5e-6)
    for moment in ("mu", "nu"):
        alike(getattr(found.moments, moment), getattr(expected.moments, moment))


def test_what_training_holds_lies_as_the_weights_do(mesh):
    found = trained(CONFIG, mesh, mesh in UNDIVIDED)
    for name, slot in parameters(found.state.model).items():
        for array in (slot.get_value(), found.moments.mu[name], found.moments.nu[name]):
            weight_lies(array, name, mesh)


def test_no_device_holds_all_of_what_is_shared_out(mesh, many):
    cut = "tensor" in mesh or "fsdp" in mesh
    weights = {name: slot.get_value() for name, slot in parameters(many.llama.model).items()}
    state = trained(CONFIG, mesh, mesh in UNDIVIDED).state.optimizer_state
    for array in jax.tree.leaves((weights, state)):
        if array.ndim > 1:  # norms and counters are everywhere
            assert array.is_fully_replicated == (not cut), array.shape


def test_a_second_step_of_training_compiles_nothing(mesh):
    first, second = trained(CONFIG, mesh, mesh in UNDIVIDED).programs
    assert any("update" in program for program in first)
    assert not second


def test_a_tied_head_is_the_embedding_on_a_mesh_too():
    one, many = answers(TIED, None).llama, answers(TIED, FULL).llama
    close(many.run(EVEN).logits, one.run(EVEN).logits)
    found, expected = trained(TIED, FULL), trained(TIED, None)
    close(found.losses, expected.losses)
    alike(found.weights[1], expected.weights[1], within=5e-6)
    for name, slot in parameters(found.state.model).items():
        weight_lies(slot.get_value(), name, FULL)


@pytest.mark.parametrize("mesh", [FULL, "sequence=4", "tensor=16"])
def test_analyses_give_what_they_give_on_one_device(mesh):
    def found(on):
        lens = analysis.logit_lens(on.run)
        scores = analysis.head_scores(on.run)
        tile = analysis.attention_map(on.run, layer=1, head=5, row=2, shape=(7, 7))
        weight = analysis.overview(on.llama.model.layers[0].mlp.up_proj.weight.get_value(), (8, 8))
        return {
            "lens": (lens.entropy, lens.kl, lens.logits_at(0)),
            "scores": tuple(scores[name].values for name in scores),
            "tile": tile.values,
            "weight": (weight.max_abs, weight.mean, weight.histogram),
        }

    alike(found(answers(CONFIG, mesh)), found(answers(CONFIG, None)))


@pytest.mark.parametrize(
    ("mesh", "point", "by"),
    [(FULL, "resid_pre", "layer,position"), ("tensor=16", ("z", 0), "head")],
)
def test_a_sweep_of_patches_gives_what_it_gives_on_one_device(mesh, point, by):
    clean = np.array(rows(12, 12, 12, 12))
    corrupted = np.where(np.arange(12) == 9, (clean + 5) % 96, clean)
    settings = {"point": point, "metric": analysis.logit_difference(3, 5), "by": by}
    found, expected = (
        analysis.patch_sweep(answers(CONFIG, on).llama, clean, corrupted, **settings)
        for on in (mesh, None)
    )
    assert np.abs(np.asarray(expected.effect)).max() > 0.1
    close([found.clean, found.corrupted], [expected.clean, expected.corrupted])
    close(found.values, expected.values, within=1e-4)


def test_long_prompts_go_by_blocks_of_queries_of_every_device(monkeypatch):
    one, many = answers(CONFIG, None).llama, answers(CONFIG, "sequence=4").llama
    prompt = rows(26, 11)  # a shape of its own, so that programs without blocks do not serve it
    expected = one.run(prompt).logits, one.gradients(prompt, third, "up_proj.weight")
    blocks = []
    monkeypatch.setattr(attention, "LARGEST_MAP", 1)
    monkeypatch.setattr(attention, "BLOCK", 8)
    by_queries = attention._by_queries

    def watched(q, *others):
        blocks.append(q.shape)
        return by_queries(q, *others)

    monkeypatch.setattr(attention, "_by_queries", watched)
    found = many.run(prompt).logits, many.gradients(prompt, third, "up_proj.weight")
    assert set(blocks) == {(2, 28, 16, 8)}  # 7 positions a device, in blocks of 2
    close(found[0], expected[0])
    alike(found[1], expected[1])


@pytest.mark.parametrize("mesh", [None, "sequence=4"])
def test_documents_in_one_row_read_nothing_of_each_other(mesh):
    leaves, structure = leaves_of(answers(CONFIG, mesh).llama.model)

    @jax.jit
    def said(leaves, tokens, weights, documents):
        model = jax.tree.unflatten(structure, leaves)
        lengths = jnp.full(len(tokens), tokens.shape[1])
        logits = forward(model, tokens, lengths, documents=documents).logits
        return logits, next_token_loss(model, tokens, weights, documents)

    alone = np.array(rows(12, 12), np.int32)
    packed = alone.reshape(1, 24)
    counted = np.ones((1, 23), np.float32)
    counted[0, 11] = 0  # nothing tells the second document's first token
    expected = said(leaves, alone, np.ones((2, 11), np.float32), np.zeros_like(alone))
    found = said(leaves, packed, counted, np.repeat([[3, 5]], 12, axis=1))
    # Positions count on through the row, and only how far apart they are matters.
    close(found[0].reshape(2, 12, 96), expected[0], within=1e-4)
    close(found[1], expected[1], within=1e-4)
    mixed = said(leaves, packed, counted, np.repeat([[3, 3]], 12, axis=1))
    assert abs(float(mixed[1] - expected[1])) > 0.01
