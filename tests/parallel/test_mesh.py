"""Which meshes there are, what they refuse, and where weights lie on them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from llama_jax import Llama, LlamaConfig
from llama_jax.model import empty_cache, parameters
from llama_jax.parallel import MeshError, make_mesh, spec
from tests.parallel.meshes import CACHE, CONFIG, MESHES, TIED, lies, weight_lies

pytestmark = pytest.mark.usefixtures("many_devices")

FULL = "data=2,fsdp=2,tensor=2"


def shape(mesh):
    return {axis: size for axis, size in mesh.shape.items() if size > 1}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {}),
        ({}, {}),
        ("tensor=8", {"tensor": 8}),
        ("data=2, tensor=4", {"data": 2, "tensor": 4}),
        ("  fsdp=2\nsequence=4 ", {"fsdp": 2, "sequence": 4}),
        ({"tensor": np.int64(4), "data": 2}, {"data": 2, "tensor": 4}),
        ("tensor=16", {"tensor": 8, "group": 2}),  # 8 key/value heads
    ],
)
def test_a_mesh_is_said_in_sizes_or_in_text(given, expected):
    assert shape(make_mesh(given, CONFIG)) == expected
    assert make_mesh(None, CONFIG) is None


def test_a_mesh_takes_the_first_devices_that_it_needs():
    assert set(make_mesh(FULL, CONFIG).devices.flat) == set(jax.devices()[:8])
    last = jax.devices()[-2:]
    assert [*make_mesh("tensor=2", CONFIG, devices=last).devices.flat] == last


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tenser": 2}, "no axis 'tenser'; it has data, fsdp, sequence, tensor. Is tensor meant?"),
        ("fdsp=2", "Is fsdp meant?"),
        ({"x": 2}, "no axis 'x'; it has data, fsdp, sequence, tensor.$"),
        ("tensor", "'tensor' in mesh='tensor': write an axis and its size, as"),
        ("tensor=", "'tensor=' in mesh="),
        ("8", "'8' in mesh="),
        ("tensor = 8", "'tensor' in mesh="),
        ("tensor=2.5", "'tensor=2.5' in mesh="),
        ("tensor=2, tensor=4", "names tensor twice"),
        ("tensor=-2", "'tensor=-2' in mesh="),
        ("data=0", "data=0: a size is a whole number of devices"),
        ({"tensor": 2.5}, "tensor=2.5: a size is a whole number"),
        ({"tensor": "2"}, "tensor='2': a size is a whole number"),
        ("data=4, fsdp=4, tensor=2", "data=4, fsdp=4, tensor=2 makes 32 devices, and there are 16"),
        ("data=2, tensor=16", "data=2, tensor=16 makes 32 devices, and there are 16: cpu"),
        ("tensor=3", "k_proj.weight: tensor=3 does not share out 8 key/value heads.*1, 2, 4, 8"),
        ("tensor=12", "k_proj.weight: tensor=12 does not share out 8 key/value heads"),
        ("fsdp=3", r"weight: fsdp=3 does not divide 128 of the model's width \(128 / 3\).*1, 2, 4"),
    ],
)
def test_a_mesh_that_there_cannot_be_says_what_is_wrong_with_it(given, says):
    with pytest.raises(MeshError, match=f"(?s){says}"):
        make_mesh(given, CONFIG)


@pytest.mark.parametrize(
    ("change", "mesh", "says"),
    [
        (
            {"intermediate_size": 82},
            "tensor=4",
            r"gate_proj.weight: tensor=4 does not divide 82 neurons \(82 / 4\).*: 1, 2, 41, 82",
        ),
        (
            {"vocab_size": 98},
            "tensor=4",
            r"embed_tokens.weight: tensor=4 does not divide 98 tokens of the vocabulary \(98 / 4\)",
        ),
        (
            {"num_attention_heads": 8},
            "tensor=16",
            r"q_proj.weight: tensor=16 does not divide 8 query heads \(8 / 16\)",
        ),
        (
            {"intermediate_size": 72},
            "tensor=16",
            r"gate_proj.weight: tensor=16 does not divide 72 neurons \(72 / 16\)",
        ),
    ],
)
def test_a_size_that_does_not_divide_a_weight_names_it_and_both_sizes(change, mesh, says):
    with pytest.raises(MeshError, match=says):
        make_mesh(mesh, dataclasses.replace(CONFIG, **change))


def test_a_tensor_is_cut_along_an_axis_of_the_mesh_once():
    mesh = make_mesh("data=2, fsdp=2, tensor=4", CONFIG)
    with pytest.raises(MeshError, match=r"V V: V and V are both .* along tensor \(4 devices\)"):
        spec("V V", mesh)
    with pytest.raises(MeshError, match="B T W: B and W are both shared out along fsdp"):
        spec("B T W", mesh)
    with pytest.raises(MeshError, match="B Q: no rule says how Q is shared out"):
        spec("B Q", mesh)
    assert spec("V V", make_mesh("data=8", CONFIG)) == P(None, None)


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    mesh = make_mesh("data=2, fsdp=2, tensor=4", CONFIG)
    assert spec("B T F", mesh, (8, 5, 80)) == P(("data", "fsdp"), None, "tensor")
    assert spec("B T F", mesh, (6, 5, 82)) == P(None, None, None)


def test_a_mesh_of_jax_with_these_axes_keeps_each_device_at_its_place():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    for given in (Mesh(devices, ("data", "tensor")), Mesh(devices.T, ("tensor", "data"))):
        made = make_mesh(given, CONFIG)
        assert shape(made) == {"data": 2, "tensor": 4}
        assert (made.devices.squeeze() == devices).all()


def test_meshes_of_jax_may_be_explicit_and_large_and_may_come_from_a_llama():
    explicit = jax.make_mesh((2, 8), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    llama = Llama.random(CONFIG, mesh=explicit)
    assert shape(llama.mesh) == {"data": 2, "tensor": 8}
    assert llama.run([[1, 2, 3], [4, 5]]).logits.shape == (2, 3, 96)
    large = make_mesh(Mesh(np.array(jax.devices()), ("tensor",)), CONFIG)
    assert shape(large) == {"tensor": 8, "group": 2}
    assert make_mesh(large, CONFIG) == large
    with pytest.raises(MeshError, match="no axis 'model'"):
        make_mesh(Mesh(np.array(jax.devices()), ("model",)), CONFIG)


@pytest.mark.parametrize("mesh", ["data=8", FULL, "tensor=16"])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_random_weights_are_the_same_on_any_mesh_and_lie_by_the_rules(config, mesh):
    expected = parameters(Llama.random(config, seed=3).model)
    found = parameters(Llama.random(config, seed=3, mesh=mesh).model)
    assert found.keys() == expected.keys()
    for name, slot in found.items():
        np.testing.assert_array_equal(slot.get_value(), expected[name].get_value(), err_msg=name)
        weight_lies(slot.get_value(), name, mesh)


@pytest.mark.parametrize("mesh", MESHES)
def test_an_empty_cache_has_rows_that_the_mesh_divides_and_lies_by_the_rules(mesh):
    cache = empty_cache(CONFIG, 3, 128, np.float32, make_mesh(mesh, CONFIG))
    for array in (*cache.keys, *cache.values):
        lies(array, *CACHE[mesh])


def test_an_abstract_llama_says_where_its_parts_would_lie():
    llama = Llama.abstract("llama-3.1-8b", mesh="tensor=16")
    weight = llama.model.layers[5].self_attn.k_proj.weight.get_value()
    assert weight.sharding.spec == P("tensor", None)
    assert weight.sharding.shard_shape(weight.shape) == (128, 4096)
    head = llama.model.lm_head.weight.get_value()
    assert head.sharding.shard_shape(head.shape) == (8016, 4096)


@pytest.mark.parametrize(
    "preset", ["llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"]
)
def test_every_llama_3_is_shared_out_among_powers_of_two(preset):
    config = dataclasses.replace(LlamaConfig.preset(preset), num_hidden_layers=1)
    for tensor in (1, 2, 4, 8, 16):
        mesh = make_mesh({"tensor": tensor}, config)
        for name, slot in parameters(Llama.abstract(config, mesh=mesh).model).items():
            weight = slot.get_value()
            part = weight.sharding.shard_shape(weight.shape)
            twice = 2 if tensor == 16 and name.endswith(("k_proj.weight", "v_proj.weight")) else 1
            cuts = 1 if name.endswith("norm.weight") else tensor // twice
            assert np.prod(part) * cuts == np.prod(weight.shape), name


def test_without_a_mesh_all_devices_are_taken_where_the_weights_do_not_fit_on_one(monkeypatch):
    size = CONFIG.parameter_count * 4
    assert Llama.random(CONFIG).mesh is None
    monkeypatch.setattr("llama_jax.llama.device_memory", lambda: size)
    assert Llama.random(CONFIG).mesh is None
    monkeypatch.setattr("llama_jax.llama.device_memory", lambda: size - 1)
    assert shape(Llama.random(CONFIG).mesh) == {"tensor": 8, "group": 2}
    assert Llama.random(CONFIG, dtype="bf16").mesh is None  # it takes half of that
    assert shape(Llama.random(CONFIG, mesh="data=2").mesh) == {"data": 2}
    monkeypatch.setattr("llama_jax.llama.device_memory", lambda: None)  # nobody knows
    assert Llama.random(CONFIG).mesh is None


def test_edited_weights_lie_where_the_old_ones_did():
    llama = Llama.random(CONFIG, mesh=FULL)
    names = ["layers.1.self_attn.o_proj.weight", "embed_tokens.weight", "norm.weight"]
    slots = parameters(llama.model)
    new = {name: np.full(slots[name].get_value().shape, 2.0) for name in names}
    edited = llama.edited(new)
    assert edited.mesh == llama.mesh
    for name, slot in parameters(edited.model).items():
        weight_lies(slot.get_value(), name, FULL)
        if name in names:
            np.testing.assert_array_equal(slot.get_value(), new[name])
        else:
            assert slot.get_value() is slots[name].get_value()
    there = slots[names[0]].get_value() + 1  # lies on the mesh already
    again = llama.edited({names[0]: there})
    weight_lies(parameters(again.model)[names[0]].get_value(), names[0], FULL)
