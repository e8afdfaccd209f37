"""Checkpoints read straight into the parts of a mesh, and written from them."""

import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.checkpoint import huggingface, meta
from llama_jax.checkpoint.tensors import TensorInfo
from llama_jax.model import parameters
from tests.parallel.meshes import CONFIG, TIED, weight_lies

pytestmark = pytest.mark.usefixtures("many_devices")

FORMATS = ("one file", "shards", "tied", "meta, 1 rank", "meta, 2 ranks", "orbax")
FULL = "data=2,fsdp=2,tensor=2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Where a checkpoint of a format lies; written when it is first asked for."""
    folders = tmp_path_factory.mktemp("checkpoints")

    def written(kind):
        folder = folders / kind
        if not folder.exists():
            write(kind, folder, Llama.random(TIED if kind == "tied" else CONFIG, std=0.3))
        return folder

    return written


def write(kind, folder, llama):
    if kind == "orbax":
        llama.save(folder, format="orbax")
    elif kind == "shards":
        llama = Llama.random(CONFIG, dtype="bf16", std=0.3)
        huggingface.save(folder, llama.model, max_shard_bytes=60_000)
        assert len(list(folder.glob("*.safetensors"))) > 3
    elif kind.startswith("meta"):
        torch = pytest.importorskip("torch")
        llama.save(folder, format="meta")
        if kind == "meta, 2 ranks":
            share_out(folder, torch)
    else:
        llama.save(folder)


def share_out(folder, torch):
    """As Meta lays a checkpoint out over two model-parallel ranks."""
    whole = torch.load(folder / "consolidated.00.pth", weights_only=True)
    for rank in (0, 1):
        held = {
            name: tensor
            if name.endswith("norm.weight")
            else torch.chunk(tensor, 2, meta._axis(name))[rank].clone()
            for name, tensor in whole.items()
        }
        torch.save(held, folder / f"consolidated.{rank:02}.pth")


@pytest.fixture
def reads(monkeypatch):
    """By tensor in the files, how often each of its numbers is read."""
    counts = {}
    read_into = TensorInfo.read_into

    def counted(self, array, part=None):
        count = counts.setdefault(self.place, np.zeros(self.shape, int))
        count[... if part is None else part] += 1
        return read_into(self, array, part)

    monkeypatch.setattr(TensorInfo, "read_into", counted)
    return counts


def weights(llama):
    return {name: slot.get_value() for name, slot in parameters(llama.model).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("mesh", [FULL, "tensor=16"])
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_those_of_one_device_and_each_is_read_once(checkpoint, kind, mesh, reads):
    folder = checkpoint(kind)
    expected = Llama.from_pretrained(folder)
    reads.clear()
    llama = Llama.from_pretrained(folder, mesh=mesh)
    assert llama.config == expected.config
    same(weights(llama), weights(expected))
    for name, array in weights(llama).items():
        weight_lies(array, name, mesh)
    if kind != "orbax":  # which has its own way to its files
        assert sum(count.sum() for count in reads.values()) == llama.config.parameter_count
        assert all((count == 1).all() for count in reads.values())


@pytest.mark.parametrize("kind", ["one file", "meta, 2 ranks", "orbax"])
def test_weights_are_cast_as_they_are_read(checkpoint, kind):
    folder = checkpoint(kind)
    llama = Llama.from_pretrained(folder, dtype="bf16", mesh=FULL)
    same(weights(llama), weights(Llama.from_pretrained(folder, dtype="bf16")))
    for name, array in weights(llama).items():
        weight_lies(array, name, FULL)


def test_without_a_mesh_a_checkpoint_goes_to_all_devices_where_one_is_too_small(
    checkpoint, monkeypatch
):
    folder = checkpoint("one file")
    monkeypatch.setattr("llama_jax.llama.device_memory", lambda: 100_000)
    llama = Llama.from_pretrained(folder)
    for name, array in weights(llama).items():
        weight_lies(array, name, "tensor=16")


def test_weights_that_are_not_finite_are_named_on_a_mesh_too(tmp_path):
    llama = Llama.random(CONFIG)
    broken = np.array(llama.model.layers[1].mlp.up_proj.weight.get_value())
    broken[70, 60] = np.nan
    llama.edited({"layers.1.mlp.up_proj.weight": broken}).save(tmp_path / "llama")
    with pytest.warns(UserWarning, match="in 1 of 21 weights, layers.1.mlp.up_proj.weight"):
        Llama.from_pretrained(tmp_path / "llama", mesh=FULL)


@pytest.mark.parametrize("mesh", [FULL, "tensor=16"])
@pytest.mark.parametrize("format", ["huggingface", "meta", "orbax"])
def test_a_mesh_saves_what_one_device_saves(checkpoint, tmp_path, format, mesh):
    if format == "meta":
        pytest.importorskip("torch")
    one, many = (Llama.from_pretrained(checkpoint("one file"), mesh=on) for on in (None, mesh))
    one.save(tmp_path / "one", format=format)
    many.save(tmp_path / "many", format=format)
    if format == "orbax":  # has each device write its own files
        same(weights(Llama.from_pretrained(tmp_path / "many")), weights(one))
        return
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "many").iterdir())
    for name in files:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
