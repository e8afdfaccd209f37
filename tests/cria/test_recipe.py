"""The recipe of cria from end to end, at a size that takes seconds."""

import dataclasses
import itertools

import numpy as np
import pytest

from llama_jax.checkpoint import huggingface
from llama_jax.config import LlamaConfig
from llama_jax.cria import recipe, world
from llama_jax.cria.evaluate import (
    Evaluation,
    Head,
    _best,
    _Counts,
    _induction,
    _repeated,
    evaluate,
)
from llama_jax.model import Model, forward, initialize, parameters
from llama_jax.text import Tokenizer

TINY = recipe.Recipe(
    config=dataclasses.replace(
        recipe.CONFIG,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    ),
    foundation_layers=1,
    foundation_steps=2,
    steps=2,
    rows=2,
    warmup=1,
    long_every=3,
    rehearsal_every=4,
    rehearsal_rows=3,
    rehearsal_length=24,
    vocabulary_documents=2000,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return recipe.make_tokenizer(TINY)


def test_batches_are_the_same_each_time_and_begin_documents_with_bos(tokenizer):
    once, again = (list(itertools.islice(recipe.batches(TINY, tokenizer), 6)) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    shapes = [(2, 160), (2, 160), (1, 320), (3, 24), (2, 160), (2, 160)]
    assert [batch.tokens.shape for batch in once] == shapes
    assert all((batch.tokens[:, 0] == tokenizer.bos).all() for batch in once)


def test_a_rehearsal_repeats_random_tokens_and_counts_from_their_second_time(tokenizer):
    batch = next(recipe.rehearsal(TINY, tokenizer, seed=0))
    for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
        period = int((weights == 0).sum())
        assert 4 <= period <= 12 and (weights[period:] == 1).all()
        np.testing.assert_array_equal(tokens[1 + period :], tokens[1:-period])


def test_training_can_be_interrupted_and_exports_a_checkpoint_that_loads(tmp_path):
    first = next(recipe.learn(tmp_path / "tiny", TINY, progress=False))
    assert first.step == 1
    every = itertools.islice(recipe.learn(tmp_path / "tiny", TINY, progress=False), 3)
    assert [state.step for state in every] == [1, 2, 1]
    *_, last = recipe.learn(tmp_path / "tiny", TINY, progress=False)
    assert last.step == 2

    config = LlamaConfig.from_huggingface(huggingface.read_config(tmp_path / "tiny"))
    assert config == TINY.config
    model = Model(config)
    huggingface.load(tmp_path / "tiny", model)
    for name, trained in parameters(last.model).items():
        np.testing.assert_array_equal(trained.get_value(), parameters(model)[name].get_value())
    read = huggingface.read_tokenizer(tmp_path / "tiny")
    stops = [read.special["<|end_of_text|>"], read.special["<|eot_id|>"]]
    assert list(huggingface.read_stop_tokens(tmp_path / "tiny")) == stops

    table = evaluate(model, read, world.documents(0, 50), questions=8, documents=8)
    assert table.loss == pytest.approx(np.log(2048), abs=0.5)
    assert table.loss_bigram < table.loss_unigram < np.log(2048)


def test_a_grown_model_computes_what_its_foundation_does():
    foundation = Model(dataclasses.replace(TINY.config, num_hidden_layers=1))
    initialize(foundation, 5)
    tokens = np.arange(20, dtype=np.int32)[None]
    expected, got = (
        forward(model, tokens, np.array([20])).logits
        for model in (foundation, recipe.grown(foundation, TINY))
    )
    np.testing.assert_array_equal(got, expected)


def test_the_table_has_a_row_for_every_figure():
    head = Head(layer=3, head=1, score=0.75)
    marks = Evaluation(1000, 1.0, 2.0, 3.0, {"Facts": 0.96}, 500, (7.5, 0.1), head, head)
    rows = marks.markdown().splitlines()
    assert len({len(row) for row in rows}) == 1
    assert any("Facts, 500 questions" in row and "96.0%" in row for row in rows)
    assert sum("0.75 (layer 3, head 1)" in row for row in rows) == 2


def test_random_tokens_are_said_twice(tokenizer):
    rows = _repeated(tokenizer, rows=3, period=5)
    assert rows.shape == (3, 11) and (rows[:, 0] == tokenizer.bos).all()
    np.testing.assert_array_equal(rows[:, 1:6], rows[:, 6:])
    assert not set(rows[:, 1:].ravel()) & set(tokenizer.special.values())


def test_a_head_that_always_looks_behind_its_last_occurrence_scores_one():
    tokens = np.array([[0, 5, 6, 7, 5, 6, 7]])
    patterns = np.full((2, 1, 2, 7, 7), 1 / 7, np.float32)
    patterns[1, :, 0] = 0
    for query, key in ((4, 2), (5, 3), (6, 4)):
        patterns[1, :, 0, query, key] = 1
    assert _best(_induction(patterns, tokens)) == Head(1, 0, 1.0)


def test_the_baselines_are_probabilities():
    counts = _Counts([[0, 1, 2, 1, 2]], vocab_size=4)
    assert counts.single.sum() == pytest.approx(1)
    np.testing.assert_allclose(counts.pairs.sum(1), 1)
    assert counts.pairs[1].argmax() == 2


def test_the_model_that_ships_has_the_sizes_of_the_recipe():
    assert 2_000_000 < recipe.CONFIG.parameter_count < 3_000_000
    sizes = (getattr(recipe.CONFIG, f.name) for f in dataclasses.fields(recipe.CONFIG)[:3])
    assert all(size % 8 == 0 for size in sizes)
