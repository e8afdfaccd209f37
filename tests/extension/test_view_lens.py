"""The logit lens as a view: numbers against the analysis, windows, questions, empty views."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Capture, Llama, Run, analysis
from llama_loupe.export import export
from llama_loupe.selection import Selection
from llama_loupe.view import ViewError
from llama_loupe.views import lens as module
from llama_loupe.views.lens import lens

TEXT = "Once upon a time there was a girl called Rosa. She had a red ball. One day, Rosa gave"
LONG = f"{TEXT} the ball to Mary. {TEXT}"


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama: Llama) -> Run:
    return llama.run(LONG, capture=("resid_post", "resid_mid"))


def columns(view, name: str) -> np.ndarray:
    """A measure over all columns, block by block, as the page puts it together."""
    count = len(view.data()["positions"])
    blocks = [view.answer("cells", {"from": start}) for start in range(0, count, module.BLOCK)]
    return np.concatenate([block[name] for block in blocks], axis=1)


def following(run: Run) -> np.ndarray:
    return np.append(run.tokens[:, 1:], run.tokens[:, -1:], axis=1)


@pytest.mark.parametrize("point", ["resid_post", "resid_mid"])
def test_cells_hold_what_the_analysis_gives(run, llama, point):
    found = analysis.logit_lens(run, point)
    view = lens(found)
    top, ids = found.top(1)
    expected = {
        "top": top[:, 0, :, 0],
        "next": found.probability(following(run))[:, 0],
        "entropy": found.entropy[:, 0],
        "kl": found.kl[:, 0],
    }
    for name, values in expected.items():
        assert columns(view, name).dtype == np.float32
        # f32 sums over 2,048 tokens; and products over other numbers of rows.
        np.testing.assert_allclose(columns(view, name), values, rtol=1e-4, atol=1e-5)
    texts = view.answer("cells", {"from": 0})["texts"]
    first = np.asarray(ids)[:, 0, : module.BLOCK, 0]
    assert texts == llama.pieces(first.ravel())


def test_a_rank_counts_the_larger_logits(run):
    logits = np.asarray(analysis.logit_lens(run).logits_at(1)[0])
    own = np.take_along_axis(logits, following(run)[0][:, None], 1)
    # Logits that are equal but for rounding may change places.
    assert np.abs(columns(lens(run), "rank")[1] - (logits > own).sum(1)).max() <= 1


def test_the_last_layer_is_the_model(run):
    view = lens(run)
    np.testing.assert_allclose(columns(view, "kl")[-1], 0, atol=1e-5)
    best = np.asarray(run.logits[0]).argmax(1)
    said = view.answer("cells", {"from": 0})["texts"][-module.BLOCK :]
    assert said == run.llama.pieces(best[: module.BLOCK])


def test_the_chosen_cell_says_what_the_grid_says(run):
    view = lens(run)
    for token, layer in ((0, 0), (40, 2), (len(run.tokens[0]) - 1, 3)):
        found = view.answer("cell", {"token": token, "layer": layer})
        block = view.answer("cells", {"from": token // module.BLOCK * module.BLOCK})
        at = token % module.BLOCK
        assert found["probabilities"][0, layer] == block["top"][layer, at]
        if found["next"] is None:
            assert token == len(run.tokens[0]) - 1
        else:
            assert found["ids"][found["next"]] == run.tokens[0, token + 1]
            np.testing.assert_array_equal(found["ranks"][found["next"]], block["rank"][:, at])
            np.testing.assert_array_equal(
                found["probabilities"][found["next"]], block["next"][:, at]
            )


def test_a_token_is_followed_through_all_layers(run):
    found = lens(run).answer("cell", {"token": 7, "layer": 2})
    expected = analysis.logit_lens(run)
    ids = [candidate.token for candidate in expected.candidates(2, 7)]
    assert found["ids"][:10].tolist() == ids
    for i, token in enumerate(found["ids"].tolist()):
        probabilities = expected.probability(token)[:, 0, 7]
        np.testing.assert_allclose(found["probabilities"][i], probabilities, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(found["ranks"][:10, 2], np.arange(10))


def test_a_long_prompt_is_sampled_evenly_in_the_overview(run, monkeypatch):
    monkeypatch.setattr(module, "SAMPLES", 16)
    view = lens(run)
    samples = view.data()["samples"]
    assert len(samples) == 16 and samples[0] == 0 and np.diff(samples).min() >= 2
    found = view.answer("overview", {"from": 0})
    assert "texts" not in found
    entropy = columns(view, "entropy")[:, samples]
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_the_first_window_holds_the_chosen_token(run):
    assert lens(run).data()["start"] == 0
    assert lens(run, selection=Selection(token=35)).data()["start"] == 32


def test_a_lens_of_some_positions_shows_these(llama):
    capture = Capture("resid_post", positions=slice(-3, None))
    run = llama.run("Once upon a time there", capture=capture)
    view = lens(run)
    assert view.data()["positions"].tolist() == [3, 4, 5]
    whole = columns(lens(llama.run("Once upon a time there", capture="resid_post")), "kl")
    np.testing.assert_allclose(columns(view, "kl"), whole[:, 3:], rtol=1e-4, atol=1e-5)
    assert view.answer("cell", {"token": 4, "layer": 0})["next"] is not None
    with pytest.raises(ViewError, match="does not hold layer 0 after token 1"):
        view.answer("cell", {"token": 1, "layer": 0})


def test_without_the_last_layer_there_is_no_divergence(llama):
    run = llama.run("Once upon", capture=[("resid_post", 0), ("resid_post", 2)])
    view = lens(analysis.logit_lens(run, [("resid_post", 0), ("resid_post", 2)]))
    data = view.data()
    assert data["layers"] == [0, 2] and "kl" not in data["first"]
    assert [measure["name"] for measure in data["measures"]] == ["top", "next", "rank", "entropy"]
    with pytest.raises(ViewError):
        view.answer("cell", {"token": 0, "layer": 1})


def test_rows_of_a_batch_end_where_they_end(llama):
    batch = llama.run(["Once upon a time", "One day"], capture="resid_post")
    view = lens(batch, row=1)
    assert view.data()["positions"].tolist() == [0, 1, 2]
    alone = lens(llama.run("One day", capture="resid_post"))
    np.testing.assert_allclose(columns(view, "kl"), columns(alone, "kl"), rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError, match="Row 2"):
        lens(batch, row=2)


def test_what_is_missing_is_said_with_the_line_of_code(llama, run, tmp_path):
    view = lens(llama.run("One day"))
    assert view.payload()["view"] == "empty"
    assert view.data()["code"] == 'run = llama.run(prompt, capture="resid_post")'
    assert "nothing to show" in repr(view) and view.cells() is None and not [*view.questions()]
    with pytest.raises(ViewError):
        view.answer("cells", {"from": 0})
    run.save(tmp_path / "x.run")
    alone = lens(Run.load(tmp_path / "x.run"))
    assert "Run.load(path, llama=llama)" in alone.data()["code"]
    again = lens(Run.load(tmp_path / "x.run", llama))
    np.testing.assert_array_equal(columns(again, "top"), columns(lens(run), "top"))
    with pytest.raises(TypeError, match=r"loupe\.lens"):
        lens(llama)


@pytest.mark.parametrize(
    "what, arguments",
    [
        ("cells", {"from": 5}),
        ("cells", {"from": -32}),
        ("cells", {"from": 3200}),
        ("cells", {}),
        ("overview", {"from": 256}),
        ("overview", {"from": None}),
        ("cell", {"token": 0, "layer": 4}),
        ("cell", {"token": 10_000, "layer": 0}),
        ("cell", {"token": True, "layer": 0}),
        ("else", {}),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(run, what, arguments):
    with pytest.raises(ViewError):
        lens(run).answer(what, arguments)


def test_a_page_gets_no_more_than_a_window(run):
    view = lens(run)
    payload, buffers = view.packed()
    assert len(payload["first"]["texts"]) == 4 * module.BLOCK
    numbers = 5 * 4 * module.BLOCK * 4
    assert sum(map(len, buffers)) == numbers + 4 * len(view.columns) + 4 * len(view._samples())


def test_hostile_texts_are_cut_and_stay_texts(run, monkeypatch):
    monkeypatch.setattr(Llama, "pieces", lambda self, ids: ["</script>" * 2000] * np.size(ids))
    view = lens(dataclasses.replace(run))
    assert {len(text) for text in view.data()["first"]["texts"]} == {module.SHOWN}
    assert {len(text) for text in view.answer("cell", {"token": 1, "layer": 0})["texts"]} == {100}


def test_everything_that_an_exported_file_may_ask_is_answered(llama, tmp_path):
    view = lens(llama.run("Once upon a time", capture="resid_post"), selection=Selection(token=3))
    asked = [(what, view.answer(what, arguments)) for what, arguments in view.questions()]
    assert [what for what, _ in asked].count("cell") == 20
    assert export(view, tmp_path / "view.html") > 0
    assert view.cells().values.shape == (4, 5)
