"""The text of a run, token by token: what is measured of each, and what a page may ask."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Capture, Llama, Run, analysis
from llama_loupe.export import export
from llama_loupe.selection import Selection
from llama_loupe.view import ViewError
from llama_loupe.views import tokens as module
from llama_loupe.views.tokens import tokens
from tests import tiny

TEXT = "Once upon a time there was a girl called Rosa.\n\nOne day, Rosa gave the ball to"


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama: Llama) -> Run:
    return llama.run(TEXT, capture=("resid_post", "embed", "z", Capture("mlp.out", reduce="norm")))


def known(view, measure: str, layer: int | None = None) -> np.ndarray:
    """The values that the page draws; NaN where a token has none."""
    found = view.answer("values", {"measure": measure, "layer": layer})
    assert found["values"].dtype == np.float32
    return np.where(found["known"] == 1, found["values"], np.nan)


def names(view) -> list[str]:
    return [measure["name"] for measure in view.data()["measures"]]


def log_softmax(logits) -> np.ndarray:
    x = np.asarray(logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_a_token_is_measured_in_the_distribution_that_the_token_before_it_gave(run):
    view = tokens(run)
    p, ids = log_softmax(run.logits[0, :-1]), run.tokens[0, 1:]
    own = p[np.arange(len(ids)), ids]
    rank = (p > own[:, None]).sum(1)
    entropy = -(np.exp(p) * p).sum(1)
    # Sums of 2,048 terms in f32.
    np.testing.assert_allclose(known(view, "logprob")[1:], own, atol=2e-5)
    np.testing.assert_array_equal(known(view, "loss"), -known(view, "logprob"))
    np.testing.assert_allclose(known(view, "loss")[1:], run.loss[0], atol=1e-6)
    np.testing.assert_array_equal(known(view, "rank")[1:], rank)
    np.testing.assert_allclose(known(view, "entropy")[1:], entropy, atol=2e-5)
    assert all(np.isnan(known(view, name)[0]) for name in ("loss", "logprob", "rank", "entropy"))


@pytest.mark.exact
def test_blocks_of_logits_give_what_all_at_once_would(run, monkeypatch):
    whole = known(tokens(run), "loss")
    monkeypatch.setattr(module, "AT_ONCE", 7 * run.config.vocab_size)
    np.testing.assert_array_equal(known(tokens(run), "loss"), whole)


def test_a_run_from_a_file_is_read_in_blocks(run, llama, tmp_path):
    run.save(tmp_path / "x.run")
    loaded = Run.load(tmp_path / "x.run", llama)
    assert isinstance(loaded.logits, np.ndarray)
    np.testing.assert_array_equal(known(tokens(loaded), "loss"), known(tokens(run), "loss"))
    np.testing.assert_array_equal(known(tokens(loaded), "kl", 1), known(tokens(run), "kl", 1))


def test_the_divergence_is_that_of_the_lens_at_the_token_before(run):
    expected = np.asarray(analysis.logit_lens(run).kl)[:, 0]
    for layer in range(3):
        found = known(tokens(run), "kl", layer)
        np.testing.assert_allclose(found[1:], expected[layer, :-1], atol=1e-5)
        assert np.isnan(found[0])


@pytest.mark.parametrize("name, layer", [("resid_post", 2), ("embed", None), ("self_attn.z", 1)])
def test_a_norm_is_of_the_token_itself(run, name, layer):
    vectors = np.asarray(run[name if layer is None else (name, layer)][0], np.float64)
    expected = np.linalg.norm(vectors.reshape(len(vectors), -1), axis=1)
    np.testing.assert_allclose(known(tokens(run), name, layer), expected, rtol=1e-6)


def test_a_capture_that_is_a_norm_already_is_shown_as_it_is(run):
    np.testing.assert_array_equal(known(tokens(run), "mlp.out", 3), run["mlp.out", 3][0])


def test_tokens_that_a_capture_left_out_have_no_value(llama):
    run = llama.run("Once upon a time", capture=Capture(("resid_post", 1), positions=[-1, 2]))
    assert np.isfinite(known(tokens(run), "resid_post", 1)).tolist() == [0, 0, 1, 0, 1]
    # Of half of the heads there is no norm of all.
    assert "self_attn.z" not in names(tokens(llama.run("a", capture=Capture("z", heads=[0]))))


def test_rows_of_a_batch_end_where_they_end(llama):
    batch = llama.run(["Once upon a time", "One day"], capture="resid_post")
    alone = llama.run("One day", capture="resid_post")
    view = tokens(batch, row=-1)
    assert view.data()["tokens"] == ["<|begin_of_text|>", "One", " day"]
    # A product over another number of rows is summed in another order.
    for measure, layer in (("loss", None), ("kl", 0), ("resid_post", 3)):
        both = [known(each, measure, layer) for each in (view, tokens(alone))]
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError, match="Row 2; this Run has 2"):
        tokens(batch, row=2)


def test_the_likeliest_in_a_tokens_place_are_those_of_the_run(run):
    found = tokens(run).answer("top", {"token": 5})
    expected = run.top(10, 4)
    assert found["texts"] == [candidate.text for candidate in expected]
    assert found["probabilities"].tolist() == [candidate.probability for candidate in expected]
    assert found["id"] == run.tokens[0, 5]
    own = run.probability(int(run.tokens[0, 5]), 4)
    assert found["own"].tolist() == [own, known(tokens(run), "rank")[5]]


def test_a_run_of_the_last_logits_shows_what_it_has_and_what_to_ask_for(llama):
    view = tokens(llama.run("Once upon a time", capture="resid_post", logits="last"))
    data = view.data()
    assert names(view) == ["resid_post", "kl"]
    assert data["code"] == 'run = llama.run(prompt, logits="all")' and data["sentence"]
    with pytest.raises(ViewError):
        view.answer("top", {"token": 1})
    bare = tokens(llama.run("Once upon a time", logits="last"))
    assert bare.data()["first"] is None and bare.cells() is None
    assert len(bare.data()["tokens"]) == 5


def test_a_single_token_has_nothing_before_it(llama):
    view = tokens(llama.run([0], capture="resid_post"))
    assert np.isnan(known(view, "loss")).all() and np.isnan(known(view, "kl", 0)).all()
    assert list(view.questions()) and "1 tokens" in repr(view)


def test_a_generation_shows_what_it_knows(llama):
    out = llama.generate(["One day", "Once upon a time"], 6, temperature=0)
    view = tokens(out, row=1)
    assert "".join(view.data()["tokens"]) == out.text[1]
    assert names(view) == ["loss", "logprob", "entropy"]
    np.testing.assert_array_equal(known(view, "logprob"), out.logprobs[1])
    np.testing.assert_array_equal(known(view, "entropy"), out.entropy[1])
    alone = tokens(dataclasses.replace(out, llama=None))
    assert alone.data()["tokens"] == [str(token) for token in out.tokens[0]]


def test_logits_that_are_no_numbers_stay_so_and_minus_infinity_is_a_probability_of_zero(run):
    logits = np.array(run.logits)
    logits[0, 2, 5] = np.nan
    logits[0, 3, 7] = -np.inf
    view = tokens(dataclasses.replace(run, logits=logits))
    for measure in ("loss", "rank", "entropy"):
        assert np.isnan(known(view, measure)).tolist() == [i in (0, 3) for i in range(view.length)]


@pytest.mark.parametrize(
    "what, arguments",
    [
        ("values", {"measure": "loss", "layer": 0}),
        ("values", {"measure": "kl", "layer": 3}),
        ("values", {"measure": "kl", "layer": None}),
        ("values", {"measure": "kl", "layer": True}),
        ("values", {"measure": "resid_post", "layer": -1}),
        ("values", {"measure": ["loss"], "layer": None}),
        ("values", {}),
        ("top", {"token": 0}),
        ("top", {"token": 10_000}),
        ("top", {"token": "1"}),
        ("else", {}),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(run, what, arguments):
    with pytest.raises(ViewError):
        tokens(run).answer(what, arguments)


def test_only_runs_and_generations_are_taken(llama):
    with pytest.raises(TypeError, match=r"loupe.tokens\(llama.run\(prompt\)\)"):
        tokens(llama)


def test_a_page_gets_no_more_than_a_screen_shows():
    config = dataclasses.replace(tiny.GQA, max_position_embeddings=8192)
    run = Llama.random(config).run(np.arange(8192) % 96)
    view = tokens(run)
    view.texts = module.bounded(["x" * 10_000] * 8192)
    payload, buffers = view.packed()
    assert sum(map(len, buffers)) == 8192 * 5  # f32, and a byte that says whether it is known
    assert max(map(len, payload["tokens"])) == 100


def test_everything_that_an_exported_file_may_ask_is_answered(run, tmp_path):
    view = tokens(run, selection=Selection(token=3))
    asked = [(what, view.answer(what, arguments)) for what, arguments in view.questions()]
    assert len(asked) == 4 + 1 + (view.length - 1) + 3 + 1 + 3 * 4
    assert export(view, tmp_path / "view.html") > 0
    assert view.cells().values.shape == (1, view.length)
