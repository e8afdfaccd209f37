"""The view of what differs: its list, its maps' numbers, and what it refuses."""

import numpy as np
import pytest

from llama_jax import Ablate, Llama, Run, analysis
from llama_jax.model import parameters
from llama_loupe import image
from llama_loupe.view import ViewError
from llama_loupe.views.compare import compare

ONE = "Once upon a time there was a little girl named Lily."
OTHER = "Once upon a time there was a little boy named Lily."
POINTS = ("resid_post", "pattern", "scores", "q", "z", "head_out", "mlp.act", "norm.scale")
Q = "layers.2.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def runs(llama):
    prompts = (ONE, "Tom")
    return [llama.run([text, *prompts[1:]], capture=POINTS) for text in (ONE, OTHER)]


@pytest.fixture(scope="module")
def view(runs):
    return compare(*runs)


@pytest.fixture(scope="module")
def changed(llama):
    values = np.array(parameters(llama.model)[Q].get_value())
    values[123, 45] += 1e-3
    return llama.edited({Q: values})


def window(height, width):
    sides = {"top": 0, "left": 0, "bottom": height, "right": width}
    return sides | {"rows": min(256, height), "columns": min(256, width), "pool": "max"}


def asked(view, name, row=0, head=0, **more):
    _, _, (height, width) = view.sides(name, row, head)
    given = {"name": name, "row": row, "head": head, **window(height, width), **more}
    return view.answer("tile", given)


def test_the_list_is_that_of_analysis(view, runs):
    data, known = view.data(), analysis.compare(*runs)
    assert data["names"] == [row.name for row in known]
    numbers = data["numbers"]
    assert numbers[:, :2].tolist() == [[row.relative, row.max_abs] for row in known]
    for (_, _, *rest), row in zip(numbers, known, strict=True):
        wanted = [np.nan if x is None else x for x in (row.kl, row.flipped, row.variation)]
        np.testing.assert_equal(rest, wanted)
    assert data["where"][0] == ", ".join(map(str, known.rows[0].where))


@pytest.mark.parametrize("kind", ["weight", "point", "logits"])
def test_the_largest_change_is_where_the_list_says(view, llama, changed, kind):
    view = compare(llama, changed) if kind == "weight" else view
    data = view.data()
    for i, name in enumerate(data["names"]):
        if data["kinds"][i] != kind:
            continue
        row, head, down, across = data["spots"][i].tolist()
        found = asked(view, name, max(row, 0), max(head, 0))
        most = np.abs(found["change"]).max()
        np.testing.assert_allclose(most, view.rows[name].max_abs, rtol=1e-6)
        at = {"top": down, "bottom": down + 1, "left": across, "right": across + 1}
        one = asked(view, name, max(row, 0), max(head, 0), **at, rows=1, columns=1)
        assert abs(one["change"].item()) == most
        assert one["change"] == one["b"] - one["a"]


def test_one_changed_entry_of_a_model_shows(llama, changed):
    view = compare(llama, changed)
    found = asked(view, Q, rows=32, columns=24)
    assert np.argwhere(found["change"]).tolist() == [[123 // 8, 45 // 8]]
    assert view.data()["names"][0] == Q
    assert "1 of 38 differ" in view.text()


@pytest.mark.parametrize(
    "name, right",
    [
        ("layers.1.resid_post", 192),
        ("layers.1.self_attn.q", 8 * 32),
        ("layers.1.self_attn.head_out", 100),
        ("layers.1.mlp.act", 100),
        ("norm.scale", 1),
        ("logits", 100),
    ],
)
def test_a_point_is_positions_by_all_the_rest(view, runs, name, right):
    length = int(runs[0].lengths[0])
    found = asked(view, name, right=right, columns=256)
    for part, run in zip("ab", runs, strict=True):
        wanted = np.asarray(run[name])[0, :length].reshape(length, -1)[:, :right]
        np.testing.assert_array_equal(found[part], wanted)


@pytest.mark.parametrize("point", ["pattern", "scores"])
def test_of_a_map_one_head_is_shown_and_nothing_above_the_diagonal(view, runs, point):
    length = int(runs[0].lengths[0])
    found = asked(view, f"layers.3.self_attn.{point}", head=5)
    for part, run in zip("ab", runs, strict=True):
        wanted = np.asarray(run[point, 3])[0, 5, :length, :length]
        np.testing.assert_array_equal(found[part], np.where(np.tri(length), wanted, 0))
    assert np.isfinite(found["change"]).all()


def test_padding_is_not_shown(view, runs):
    length = int(runs[0].lengths[1])
    assert length < int(runs[0].lengths[0])
    found = asked(view, "layers.0.resid_post", row=1)
    np.testing.assert_array_equal(found["a"], np.asarray(runs[0]["resid_post", 0])[1, :length])
    assert not found["change"].any()


def test_last_logits_alone_are_one_row(llama):
    view = compare(llama.run(ONE), llama.run(OTHER, logits="last"))
    found = asked(view, "logits", columns=256)
    assert found["a"].shape == (1, 256)
    assert view.data()["forms"]["logits"]["height"] == 1
    last = np.asarray(llama.run(ONE).logits)[0, -1]
    assert np.abs(found["a"]).max() == np.abs(last).max()


def test_a_run_from_a_file_is_compared_as_any_other(runs, tmp_path):
    runs[1].save(tmp_path / "x.run")
    view = compare(runs[0], Run.load(tmp_path / "x.run"))
    found = asked(view, "layers.1.resid_post")
    wanted = np.asarray(runs[1]["resid_post", 1])[0]
    np.testing.assert_array_equal(found["b"], wanted)


def test_tokens_that_differ_are_listed(view):
    prompt = view.data()["prompt"]
    assert prompt["differ"] == 1 and prompt["others"] == [" boy"]
    assert prompt["tokens"][prompt["positions"][0]] == " girl"
    assert view.answer("prompt", {"row": 1})["differ"] == 0


def test_an_ablation_is_found(llama):
    run = llama.run(ONE, capture="z")
    other = llama.run(ONE, capture="z", edits=Ablate("layers.1.self_attn.z", heads=[3]))
    view = compare(run, other)
    data = view.data()
    at = data["names"].index("layers.1.self_attn.z")
    assert data["spots"][at][3] // data["forms"]["self_attn.z"]["size"] == 3


def test_a_comparison_alone_is_a_list(llama, changed):
    view = compare(analysis.compare(llama, changed))
    data = view.data()
    assert data["names"][0] == Q and not data["forms"] and "no arrays" in data["notes"][0]
    assert view.cells() is None and not list(view.questions())
    with pytest.raises(ViewError):
        view.answer("tile", {"name": Q, "row": 0, "head": 0, **window(256, 192)})


def test_differences_of_configs_and_points_are_said(llama):
    one, other = llama.run(ONE, capture=("embed", "q")), llama.run(ONE, capture=("embed", "k"))
    notes = compare(one, other).data()["notes"]
    assert "Only in a: layers.0.self_attn.q" in notes and "Only in b: layers.3.self_attn.k" in notes


@pytest.mark.parametrize(
    "what, change",
    [
        ("tile", {"name": "layers.0.lens"}),
        ("tile", {"name": "nothing"}),
        ("tile", {"name": None}),
        ("tile", {"row": 2}),
        ("tile", {"head": 8}),
        ("tile", {"bottom": 10**6}),
        ("tile", {"rows": 257}),
        ("tile", {"pool": ""}),
        ("prompt", {"row": -1}),
        ("else", {}),
    ],
)
def test_bad_questions_are_refused(view, what, change):
    good = {"name": "layers.0.resid_post", "row": 0, "head": 0, **window(5, 192)}
    view.answer("tile", good)
    with pytest.raises(ViewError):
        view.answer(what, good | change)


def test_what_cannot_be_compared_is_refused(llama, runs):
    with pytest.raises(TypeError, match="not Run and Llama"):
        compare(runs[0], llama)
    with pytest.raises(IndexError, match="Row 2; this batch has 2"):
        compare(*runs, row=2)
    with pytest.raises(ValueError, match="1 and 2 rows"):
        compare(llama.run("Once"), llama.run(["Once", ONE]))
    assert compare(*runs, row=-1).row == 1


def test_prompts_of_other_lengths_are_a_list_that_says_how_they_are_aligned(llama):
    view = compare(llama.run("Once"), llama.run(ONE))
    assert view.comparison.aligned is not None
    assert any("aligned by tokens" in note for note in view.data()["notes"])


def test_what_is_sent_is_bounded(view, llama, changed):
    for each in (view, compare(llama, changed)):
        payload, buffers = each.packed()
        assert sum(map(len, buffers)) < 20_000 and len(str(payload)) < 60_000
    found = asked(view, "logits", columns=256)
    assert sum(x.nbytes for x in found.values()) < 3 * 256 * 256 * 4 + 3000


def test_the_picture_is_the_difference(llama, changed):
    cells = compare(llama, changed).cells()
    assert cells.diverging and np.count_nonzero(cells.values) == 1
    assert image.png(cells).startswith(b"\x89PNG")
    assert compare(llama, llama).cells() is None


def test_an_exported_file_answers_for_what_changed(view):
    questions = list(view.questions())
    assert questions[0] == ("prompt", {"row": 1})
    assert questions[1][1]["name"] == view.data()["names"][0]
    for what, arguments in questions[:12]:
        view.answer(what, arguments)
    names = {arguments.get("name") for _, arguments in questions}
    assert not any("lens" in str(name) for name in names)
