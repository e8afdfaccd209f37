"""Weights as Orbax writes arrays, in a folder that is replaced whole."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llama_jax import Llama
from llama_jax.checkpoint import CheckpointError, orbax
from llama_jax.cria import WEIGHTS
from llama_jax.model import Model, parameters
from tests.tiny import GQA

TIED = dataclasses.replace(GQA, tie_word_embeddings=True)


def same(a, b):
    ours, theirs = parameters(a.model), parameters(b.model)
    assert ours.keys() == theirs.keys() and a.config == b.config
    for name in ours:
        x, y = ours[name].get_value(), theirs[name].get_value()
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.fixture
def saved(tmp_path):
    Llama.random(GQA).save(tmp_path / "llama", format="orbax")
    return tmp_path / "llama"


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("config", [GQA, TIED], ids=["untied", "tied"])
def test_what_is_saved_is_opened_bit_for_bit(tmp_path, config, dtype):
    llama = Llama.random(config, dtype=dtype)
    llama.save(tmp_path / "llama", format="orbax")
    same(Llama.from_pretrained(tmp_path / "llama"), llama)


def test_tokenizer_and_stops_come_along(tmp_path):
    cria = Llama.from_pretrained("cria")
    cria.save(tmp_path / "llama", format="orbax")
    again = Llama.from_pretrained(tmp_path / "llama")
    assert again.stop_tokens == cria.stop_tokens
    assert again.generate("One day", 8).text == cria.generate("One day", 8).text


def test_it_is_cast_as_it_is_read(saved):
    assert Llama.from_pretrained(saved, dtype="bf16").model.dtype == jnp.bfloat16


def test_weights_lie_where_they_are_asked_to_lie(saved):
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("tensor"))
    model = Model(GQA)
    orbax.load(saved, model, shardings={"norm.weight": place})
    assert model.norm.weight.get_value().sharding == place


def test_one_format_takes_the_place_of_another(tmp_path):
    folder = tmp_path / "llama"
    first, second = Llama.random(GQA), Llama.random(GQA, seed=1)
    first.save(folder)
    (folder / "notes.txt").write_text("mine")
    second.save(folder, format="orbax")
    same(Llama.from_pretrained(folder), second)
    assert not list(folder.glob("*.safetensors")) and (folder / "notes.txt").exists()
    first.save(folder)
    same(Llama.from_pretrained(folder), first)
    assert not orbax.is_orbax(folder)


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_after_an_error_or_an_interrupt_the_old_checkpoint_is_whole(saved, monkeypatch, problem):
    before = Llama.from_pretrained(saved)

    def fail(*args, **kwargs):
        raise problem

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(type(problem)):
        Llama.random(GQA, seed=1).save(saved, format="orbax")
    same(Llama.from_pretrained(saved), before)
    assert os.listdir(saved.parent) == ["llama"]


def error(folder):
    with pytest.raises(CheckpointError) as caught:
        Llama.from_pretrained(folder)
    return str(caught.value)


def test_shapes_are_compared_with_the_config_before_anything_is_read(saved, monkeypatch):
    text = (saved / "config.json").read_text()
    other = text.replace('"intermediate_size": 48', '"intermediate_size": 40')
    (saved / "config.json").write_text(other)
    monkeypatch.setattr(ocp.Checkpointer, "restore", None)
    found = error(saved)
    assert "layers.0.mlp.down_proj.weight: stored as [32, 48], config says [32, 40]" in found
    (saved / "config.json").write_text(
        text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 2')
    )
    assert "layers.2.mlp.up_proj.weight: stored as [48, 32], config says no such tensor" in error(
        saved
    )


def test_files_that_are_missing_or_cut_off_are_an_error_with_the_folder(saved):
    weights = saved / orbax.WEIGHTS
    data = max((f for f in weights.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert "cannot be read" in error(saved) and str(weights) in error(saved)
    (weights / "_METADATA").unlink()
    assert "is not a whole Orbax checkpoint" in error(saved)


def test_weights_that_are_not_finite_are_named(tmp_path):
    llama = Llama.random(GQA)
    broken = llama.edited({"norm.weight": np.full(32, np.inf)})
    broken.save(tmp_path / "llama", format="orbax")
    with pytest.warns(UserWarning, match="in 1 of 30 weights, norm.weight"):
        Llama.from_pretrained(tmp_path / "llama")


def test_an_abstract_llama_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="abstract"):
        Llama.abstract(GQA).save(tmp_path / "llama", format="orbax")
    with pytest.raises(ValueError, match="must be 'huggingface', 'meta' or 'orbax'"):
        Llama.random(GQA).save(tmp_path / "llama", format="gguf")
    assert WEIGHTS.is_dir() and not list(tmp_path.iterdir())
