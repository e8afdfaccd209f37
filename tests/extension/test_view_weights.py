"""The view of a model's weights: its numbers, its size, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama, LlamaConfig, analysis
from llama_jax.model import parameters
from llama_loupe import image
from llama_loupe.selection import Selection
from llama_loupe.view import ViewError
from llama_loupe.views import weights as module
from llama_loupe.views.weights import weights
from tests.tiny import GQA

Q = "layers.2.self_attn.q_proj.weight"
WINDOW = {"top": 0, "bottom": 256, "left": 0, "right": 192, "rows": 256, "columns": 192}
WINDOW |= {"pool": "max"}


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def view(llama):
    return weights(llama)


def array(llama, name):
    return np.asarray(parameters(llama.model)[name].get_value())


def with_outlier(llama, value):
    changed = array(llama, Q).copy()
    changed[123, 45] = value
    return llama.edited({Q: changed})


def test_weights_stand_in_the_order_of_the_forward_pass(view):
    names = [weight["name"] for weight in view.data()["weights"]]
    assert names[:2] == ["embed_tokens.weight", "norm.weight"]
    inside = [name.removeprefix("layers.1.") for name in names if name.startswith("layers.1.")]
    assert inside == [f"{kind}.weight" for kind in module.KINDS]


def test_a_small_model_is_sent_with_all_pictures(view):
    data = view.data()
    assert len(data["looks"]) == len(data["weights"]) == 38
    assert sum(map(len, view.packed()[1])) < 160_000


def test_numbers_are_those_of_analysis(view, llama):
    known = analysis.weight_statistics(llama)
    for name in (Q, "norm.weight", "embed_tokens.weight"):
        look, one = view.answer("look", {"name": name}), known[name]
        for field, value in zip(module.NUMBERS, look["numbers"], strict=True):
            np.testing.assert_allclose(value, getattr(one, field), rtol=1e-5, atol=1e-9)
        assert look["ends"].tolist() == [look["numbers"][2], look["numbers"][3]]
        counts, _ = np.histogram(array(llama, name).astype(np.float64), 64)
        np.testing.assert_array_equal(look["histogram"], counts)


@pytest.mark.parametrize("value", [9.0, -9.0])
def test_an_outlier_is_the_brightest_cell(llama, value):
    look = weights(with_outlier(llama, value)).look(Q)
    assert look["most"] == [9.0]
    np.testing.assert_array_equal(np.argwhere(look["codes"] == 254), [[123 // 4, 45 // 3]])
    assert (look["codes"][look["codes"] < 254] < 60).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_has_a_code_of_its_own(llama, value):
    look = weights(with_outlier(llama, value)).look(Q)
    np.testing.assert_array_equal(np.argwhere(look["codes"] == module.BAD), [[30, 15]])
    assert look["numbers"][6:].tolist() == ([1, 0] if np.isnan(value) else [0, 1])
    assert "1 of them not finite" in weights(with_outlier(llama, value)).text()


def test_a_tile_has_the_exact_entries(view, llama):
    found = view.answer("tile", {"name": Q, **WINDOW})
    np.testing.assert_array_equal(found["values"], array(llama, Q))


def test_a_tile_of_a_vector_is_a_row(view, llama):
    window = WINDOW | {"bottom": 1}
    found = view.answer("tile", {"name": "norm.weight", **window})
    np.testing.assert_array_equal(found["values"], array(llama, "norm.weight")[None])


def test_singular_values_are_numpys(view, llama):
    found = view.answer("singular_values", {"name": Q})["values"]
    np.testing.assert_allclose(found, np.linalg.svd(array(llama, Q), compute_uv=False), rtol=1e-4)


def test_singular_values_are_refused_with_the_reason(view, llama, monkeypatch):
    with pytest.raises(ViewError, match="vector"):
        view.answer("singular_values", {"name": "norm.weight"})
    monkeypatch.setattr(module, "MOST_SINGULAR", 10_000)
    with pytest.raises(ViewError, match=r"256 x 192, 49,152 entries; .* at most 10,000"):
        view.answer("singular_values", {"name": Q})
    monkeypatch.undo()
    with pytest.raises(ViewError, match="NaN or infinity"):
        weights(with_outlier(llama, np.nan)).answer("singular_values", {"name": Q})


@pytest.mark.parametrize(
    "what, arguments",
    [
        ("look", {}),
        ("look", {"name": "nothing"}),
        ("look", {"name": ["a"]}),
        ("tile", {"name": Q}),
        ("tile", {"name": Q} | WINDOW | {"bottom": 257}),
        ("tile", {"name": Q} | WINDOW | {"top": -1}),
        ("tile", {"name": Q} | WINDOW | {"top": 256}),
        ("tile", {"name": Q} | WINDOW | {"rows": 10**6}),
        ("tile", {"name": Q} | WINDOW | {"columns": 0}),
        ("tile", {"name": Q} | WINDOW | {"pool": "median"}),
        ("tile", {"name": Q} | WINDOW | {"left": 1.5}),
        ("anything", {"name": Q}),
    ],
)
def test_bad_questions_are_refused(view, what, arguments):
    with pytest.raises(ViewError):
        view.answer(what, arguments)


def test_a_large_model_is_drawn_before_anything_is_looked_at(llama, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    monkeypatch.setattr(module, "pooled", None)
    view = weights(llama)
    assert view.data()["looks"] == []
    assert view.cells() is None
    assert view.text().endswith("2,459,328 entries")


def test_pictures_of_80_layers_stay_below_4_megabytes():
    small = dataclasses.replace(GQA, hidden_size=64, intermediate_size=64, num_hidden_layers=80)
    view = weights(Llama.random(small))
    payload, buffers = view.packed()
    assert len(payload["weights"]) == 723 and 64 >= view.side > 50
    assert sum(map(len, buffers)) < 4.2e6


def test_a_weight_is_looked_at_once_until_it_is_another(llama, monkeypatch):
    llama = with_outlier(llama, 1.0)
    view = weights(llama)
    first = view.look(Q)
    assert view.look(Q) is first
    slot = parameters(llama.model)[Q]
    slot.set_value(slot.get_value() * 2)
    assert view.look(Q)["numbers"][4] == pytest.approx(2 * first["numbers"][4])
    slot.get_value().delete()
    with pytest.raises(ViewError, match="is gone"):
        view.look(Q)


def test_parts_say_who_holds_what():
    llama = Llama.from_pretrained("cria", mesh={"data": 2, "tensor": 4})
    view = weights(llama)
    parts = view.look(Q)["parts"]
    spec = llama.model.layers[2].self_attn.q_proj.weight.get_value().sharding.spec
    covered = np.zeros((256, 192), int)
    for part in parts:
        top, bottom, left, right = part["window"]
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all(), spec
    assert sum(len(part["devices"].split(", ")) for part in parts) == 8
    found = view.answer("tile", {"name": Q, **WINDOW})
    np.testing.assert_array_equal(found["values"], array(llama, Q))
    assert view.answer("singular_values", {"name": Q})["values"].shape == (192,)


def test_one_device_has_no_parts(view):
    assert view.look(Q)["parts"] == []


def test_bf16_is_looked_at_as_it_is():
    llama = Llama.from_pretrained("cria", dtype="bf16")
    view = weights(llama)
    found = view.answer("tile", {"name": Q, **WINDOW})
    np.testing.assert_array_equal(found["values"], array(llama, Q).astype(np.float32))
    assert view.data()["weights"][0]["dtype"] == "bfloat16"


def test_an_abstract_llama_says_what_is_missing():
    view = weights(Llama.abstract("llama-3.1-70b"))
    payload, buffers = view.packed()
    assert payload["view"] == "empty" and not buffers
    assert "723 arrays of 70,553,706,496 entries" in payload["sentence"]
    assert "from_pretrained" in payload["code"] and "from_pretrained" in view.text()
    assert view.cells() is None and not list(view.questions())
    with pytest.raises(ViewError):
        view.answer("look", {"name": Q})


def test_the_picture_has_a_cell_for_each_weight(view):
    cells = view.cells()
    assert cells.values.shape == (5 * 65, 9 * 65)
    assert image.png(cells).startswith(b"\x89PNG")


def test_an_exported_file_answers_for_the_chosen_layer_first(llama):
    questions = list(weights(llama, selection=Selection(layer=3)).questions())
    assert questions[0][1]["name"].startswith("layers.3.")
    assert {what for what, _ in questions} == {"tile", "singular_values"}
    view = weights(llama)
    for what, arguments in questions[:3]:
        view.answer(what, arguments)


def test_it_takes_a_llama_only(llama):
    with pytest.raises(TypeError, match="takes a Llama, not Model"):
        weights(llama.model)


def test_nothing_of_a_preset_is_made():
    """What 405B would send: names and shapes."""
    config = LlamaConfig.preset("llama-3.1-405b")
    assert config.num_hidden_layers * 9 + 3 == len(weights(Llama.abstract(config)).slots)


def test_integers_and_zeros_are_weights_too():
    llama = Llama.random(GQA)
    slot = parameters(llama.model)["norm.weight"]
    slot.set_value(jnp.zeros_like(slot.get_value()))
    look = weights(llama).look("norm.weight")
    assert look["codes"].max() == 0 and look["most"] == [0] and look["numbers"][5] == 32
    assert isinstance(slot.get_value(), jax.Array)
