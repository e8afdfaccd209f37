"""A vocabulary that is larger than the tokenizer's: its ids behind the end have labels."""

import dataclasses

import numpy as np
import pytest

import llama_loupe as loupe
from llama_jax import Llama, Run, analysis
from llama_jax.text import TokenError, Tokenizer
from tests import tiny
from tests.text.vocabularies import byte_level

SIZE = 4096  # most ids are behind the tokenizer's end, so that random weights write those


@pytest.fixture(scope="module")
def llama():
    config = dataclasses.replace(tiny.GQA, vocab_size=SIZE, num_hidden_layers=1)
    return Llama(tiny.model(config), Tokenizer(byte_level(size=300)))


@pytest.fixture(scope="module")
def ids(llama):
    return [*llama.tokens("Mary")[0].tolist(), 300, SIZE - 1]


@pytest.fixture(scope="module")
def run(llama, ids):
    return llama.run([ids], capture=("embed", "resid_post", "pattern", "self_attn.out", "mlp.out"))


def test_such_an_id_has_a_label_and_no_text(llama, ids):
    assert llama.pieces(ids)[-2:] == ["<unused 300>", f"<unused {SIZE - 1}>"]
    assert llama.tokenizer.decode(ids) == "Mary"
    assert llama.tokenizer.token_bytes(300) == b""
    stream = llama.tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == "Mary"
    assert llama.tokenizer.vocab_size == 300


def test_an_id_behind_the_models_vocabulary_is_an_error(llama):
    for call in (llama.pieces, llama.tokenizer.decode, llama.tokenizer.pieces):
        with pytest.raises(TokenError, match=f"Token {SIZE} at position 0"):
            call([SIZE])


def test_a_tokenizer_that_is_larger_than_the_model_stays_so():
    tokenizer = Tokenizer(byte_level(size=300))
    llama = Llama(tiny.model(dataclasses.replace(tiny.GQA, num_hidden_layers=1)), tokenizer)
    assert llama.pieces([299]) == tokenizer.pieces([299])


def test_what_is_likely_next_is_labelled(run):
    found = run.top(SIZE)
    assert sorted(c.text for c in found if c.token >= 300) == sorted(
        f"<unused {id}>" for id in range(300, SIZE)
    )


def test_such_tokens_are_written(llama):
    out = llama.generate(["Mary", "John went"], max_new_tokens=6, temperature=2.0, top_p=1.0)
    assert (out.tokens >= 300).any()
    assert out.text == [llama.tokenizer.decode(row) for row in out.tokens]
    steps = list(llama.stream("Mary", 6, temperature=2.0, top_p=1.0))
    assert "".join(step.text for step in steps) == llama.tokenizer.decode(
        [step.token for step in steps]
    )


def test_a_run_is_saved_with_its_labels(run, tmp_path):
    run.save(tmp_path / "x.run")
    assert (Run.load(tmp_path / "x.run").tokens == run.tokens).all()


def test_analyses_label_them(llama, run, ids):
    assert analysis.logit_lens(run).top(3)
    other = [*ids[:-1], 301]

    def metric(logits):
        return logits[:, 0]

    swept = analysis.patch_sweep(llama, [ids], [other], point="resid_pre", metric=metric)
    assert f"<unused {SIZE - 1}>/<unused 301>" in swept.pieces
    assert analysis.direct_logit_attribution(run, SIZE - 1).pieces[-1] == f"<unused {SIZE - 1}>"
    assert np.isfinite(analysis.head_scores(llama).induction).all()


def test_random_tokens_of_head_scores_are_ones_that_texts_have(llama):
    assert (analysis.repeated_tokens(llama) < 300).all()


@pytest.mark.parametrize("view", [loupe.attention, loupe.tokens, loupe.lens, loupe.residual])
def test_views_label_them(view, run, tmp_path):
    loupe.export(view(run), tmp_path / "view.html")
