"""The attention view: its atlas and its tiles against the whole pattern."""

import numpy as np
import pytest

from llama_jax import Ablate, Capture, Llama, Replace, analysis
from llama_loupe import Selection, attention, export, image
from llama_loupe.view import ViewError

TEXT = "Once upon a time, Tom and Mary went to the river. Tom gave a red ball to Mary. " * 4


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama):
    return llama.run([TEXT, "Once upon a time"], capture=("q_rot", "k_rot", "pattern"))


@pytest.fixture(scope="module")
def queries_and_keys(llama):
    return llama.run([TEXT, "Once upon a time"], capture=("q_rot", "k_rot"))


def tile(view, layer, head, queries, keys, cells, pool="max"):
    return view.answer(
        "tile",
        {
            "layer": layer,
            "head": head,
            "top": queries[0],
            "bottom": queries[1],
            "left": keys[0],
            "right": keys[1],
            "rows": cells,
            "columns": cells,
            "pool": pool,
        },
    )


@pytest.mark.parametrize("source", ["run", "queries_and_keys"])
def test_the_atlas_holds_the_largest_probability_of_every_cell(source, request, run):
    data = attention(request.getfixturevalue(source)).data()
    atlas, cuts = data["atlas"], data["cuts"]
    n = len(cuts) - 1
    assert atlas.shape == (4, 8, n, n) and atlas.dtype == np.uint8 and 32 <= n <= 64
    assert cuts[-1] == data["length"] and np.ptp(np.diff(cuts)[:-2]) == 0  # no false borders
    pattern = np.asarray(run["pattern", 2])[0, 3]
    for i, j in ((0, 0), (n - 1, 0), (20, 13), (n - 1, n - 1)):
        most = pattern[cuts[i] : cuts[i + 1], cuts[j] : cuts[j + 1]].max()
        # One code is 1/254 of the square root, and rounded up: what is a little is not nothing.
        assert -1e-6 <= atlas[2, 3, i, j] / 254 - np.sqrt(most) < 1 / 254 + 1e-3


@pytest.mark.parametrize("source", ["run", "queries_and_keys"])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_tile_is_the_pattern(source, request, run, pool):
    view = attention(request.getfixturevalue(source))
    pattern = np.asarray(run["pattern", 1])[0, 5]
    exact = tile(view, 1, 5, (30, 50), (20, 45), 32, pool)
    np.testing.assert_allclose(exact["values"], pattern[30:50, 20:45], atol=1e-6)
    assert exact["rows"].tolist() == [*range(30, 51)]
    pooled = tile(view, 1, 5, (0, view.length), (0, view.length), 7, pool)
    rows, columns = pooled["rows"], pooled["columns"]
    reduce = np.max if pool == "max" else np.mean
    for i, j in np.ndindex(7, 7):
        cell = pattern[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        np.testing.assert_allclose(pooled["values"][i, j], reduce(cell), atol=1e-6)


def test_a_planted_cell_is_found_at_every_zoom(llama, run):
    length = int(run.lengths[0])
    pattern = np.zeros(run["pattern", 1].shape, np.float32)
    pattern[0, 6, 71, 13] = 0.875
    planted = llama.run([TEXT, "Once upon a time"], capture="pattern")
    planted.captured["layers.1.self_attn.pattern"] = pattern
    view = attention(planted)
    assert view.data()["atlas"][1, 6].max() == np.ceil(254 * np.sqrt(0.875))
    low, high = 0, length
    while high - low > 1:
        for cells in (1, 3, 16):
            found = tile(view, 1, 6, (low, high), (0, length), cells)["values"]
            assert found.max() == (0.875 if low <= 71 < high else 0)
        low, high = (
            (low, (low + high) // 2) if (low + high) // 2 > 71 else ((low + high) // 2, high)
        )
    assert view.answer("row", {"layer": 1, "head": 6, "query": 71})["values"].argmax() == 13


def test_a_row_of_a_batch_has_its_own_length_and_tokens(queries_and_keys):
    data = attention(queries_and_keys, row=-1).data()
    assert data["length"] == 5 and data["atlas"].shape == (4, 8, 5, 5)
    assert data["tokens"][1:] == ["Once", " upon", " a", " time"]
    with pytest.raises(IndexError, match="Row 2; this Run has 2"):
        attention(queries_and_keys, row=2)


def test_maps_pooled_in_the_forward_make_an_atlas(llama, run):
    pooled = llama.run(TEXT, capture=Capture("pattern", reduce=("max_pool", 16)))
    view = attention(pooled)
    data = view.data()
    assert data["atlas"].shape == (4, 8, 16, 16) and not data["detail"]
    assert "q_rot" in data["code"]
    whole = attention(llama.run(TEXT, capture="pattern")).data()["atlas"]
    assert abs(int(whole.max()) - int(data["atlas"].max())) <= 1
    with pytest.raises(ViewError):
        tile(view, 0, 0, (0, 4), (0, 4), 4)
    assert [what for what, _ in view.questions()] == ["pooled"] * 32


@pytest.mark.parametrize("row", [0, 1])
def test_pooled_maps_are_exact_and_end_where_their_row_does(llama, run, row):
    texts = ["One day", "When Mary and John went to the market, John gave a basket to"]
    pooled = llama.run(texts, capture=Capture("pattern", reduce=("max_pool", 8)))
    whole = np.asarray(llama.run(texts, capture="pattern")["pattern", 1])[row, 6]
    view = attention(pooled, row=row)
    data, found = view.data(), view.answer("pooled", {"layer": 1, "head": 6})
    edges = found["rows"]
    assert edges[-1] == view.length and edges.tolist() == found["columns"].tolist()
    for i, j in np.ndindex(found["values"].shape):
        cell = whole[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
        assert found["values"][i, j] == cell.max()
    codes = np.ceil(254 * np.sqrt(found["values"]))
    np.testing.assert_array_equal(data["atlas"][1, 6], codes)
    np.testing.assert_array_equal(data["cuts"], edges)


def test_nan_is_not_nothing(llama):
    broken = llama.run(
        TEXT, capture=("q_rot", "k_rot"), edits=Replace(("q_rot", 2), lambda q: q * np.nan)
    )
    view = attention(broken)
    atlas = view.data()["atlas"]
    assert (atlas[2].diagonal(axis1=1, axis2=2) == 255).all() and atlas[1].max() <= 254
    assert np.isnan(view.cells().values).any()


def test_layers_that_are_not_shown_are_named(llama):
    view = attention(llama.run(TEXT, capture=[("q_rot", 2), ("k_rot", 2)]))
    assert "Not shown: layers 0, 1, 3" in view.data()["sentence"]
    assert view.data()["scores"] == []


def test_an_edited_pattern_is_shown_as_it_was_used(llama):
    captured = ("q_rot", "k_rot", "pattern")
    edited = llama.run(TEXT, capture=captured, edits=Ablate(("pattern", 1), heads=3))
    view = attention(edited)
    assert view.kept[1] == "pattern" and view.data()["atlas"][1, 3].max() == 0
    without = llama.run(TEXT, capture=captured[:2], edits=Ablate(("pattern", 1), heads=3))
    assert 1 not in attention(without).kept


def test_some_layers_can_be_captured(llama):
    view = attention(llama.run(TEXT, capture=[("q_rot", 2), ("k_rot", 2)]))
    assert view.layers == [2] and view.data()["atlas"].shape[:2] == (1, 8)


def test_an_empty_view_says_what_to_capture(llama):
    view = attention(llama.run("Once upon a time"))
    assert view.payload()["view"] == "empty"
    assert 'capture=("q_rot", "k_rot")' in view.payload()["code"]
    assert "nothing to show" in repr(view) and view.cells() is None


def test_head_scores_sort_the_atlas(queries_and_keys):
    found = attention(queries_and_keys).answer("scores", {})
    scores = analysis.head_scores(queries_and_keys)
    at = found["names"].index("previous_token")
    np.testing.assert_allclose(found["values"][at], scores.previous_token)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": 4},
        {"head": -1},
        {"head": True},
        {"layer": "0"},
        {"rows": 257},
        {"rows": 0},
        {"pool": "min"},
        {"pool": ["max"]},
        {"top": 9, "bottom": 9},
        {"right": 10_000},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(queries_and_keys, changes):
    good = {"layer": 0, "head": 0, "top": 0, "bottom": 9, "left": 0, "right": 9}
    view = attention(queries_and_keys)
    good |= {"rows": 9, "columns": 9, "pool": "max"}
    assert view.answer("tile", good)["values"].shape == (9, 9)
    with pytest.raises(ViewError, match=next(iter(changes))):
        view.answer("tile", good | changes)


def test_what_is_no_run_is_refused(llama):
    with pytest.raises(TypeError, match="attention takes a Run, not Llama"):
        attention(llama)


def test_the_picture_for_places_without_scripts(queries_and_keys):
    drawn = image.png(attention(queries_and_keys).cells())
    assert drawn.startswith(b"\x89PNG") and len(drawn) < 200_000


def test_a_selection_is_shared(queries_and_keys):
    selection = Selection(layer=2, head=1)
    views = [attention(queries_and_keys, selection=selection) for _ in range(2)]
    ids = {view.packed()[0]["selection"]["id"] for view in views}
    assert len(ids) == 1


def test_1024_heads_at_8192_tokens_are_at_most_5_mb(llama):
    """The atlas is bounded by its number of cells, whatever the prompt's length."""
    from llama_loupe.views import attention as module

    side = int((module.ATLAS / 1024) ** 0.5)
    assert side >= 64 and 1024 * 64 * 64 <= 5e6
    assert 80 * 64 * int((module.ATLAS / (80 * 64)) ** 0.5) ** 2 <= 5e6


def test_an_export_holds_every_head_of_a_short_prompt(llama, tmp_path):
    view = attention(llama.run("Once upon a time", capture=("q_rot", "k_rot")))
    size = export(view, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert size == len(text.encode()) < 150_000
    assert text.count('\\"tile\\"') == 32 and "http" not in text.replace("http-equiv", "")
