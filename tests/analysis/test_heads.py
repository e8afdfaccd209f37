"""Scores of heads: the formulas on whole patterns, and a circuit whose scores are known."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Llama, Replace
from llama_jax.analysis import MissingPointError, head_scores, repeated_tokens
from tests.analysis.planted import planted
from tests.tiny import GQA, MQA

PROMPTS = [[7, 1, 2, 1, 3, 1, 1, 2, 9], [4, 5, 4, 5, 6]]


def by_hand(tokens, pattern):
    """The scores of one head over rows of `(tokens, pattern)`, in plain Python."""
    sums = {name: [] for name in ("previous", "current", "first", "duplicate", "induction", "h")}
    for row, p in zip(tokens, pattern, strict=True):
        for i in range(len(row)):
            sums["current"].append(p[i, i])
            sums["h"].append(-sum(x * np.log(x) for x in p[i, : i + 1] if x > 0))
            if i:
                sums["previous"].append(p[i, i - 1])
                sums["first"].append(p[i, 0])
            earlier = [j for j in range(i) if row[j] == row[i]]
            if earlier:
                sums["duplicate"].append(sum(p[i, j] for j in earlier))
                sums["induction"].append(p[i, earlier[-1] + 1])
    return [np.mean(values) for values in sums.values()]


@pytest.mark.parametrize("config", [GQA, MQA], ids=["GQA", "MQA"])
def test_scores_are_the_formulas_on_every_row_s_own_positions(config):
    llama = Llama.random(config, std=0.3)
    run = llama.run(PROMPTS, "pattern")
    found = head_scores(llama, PROMPTS)
    from_patterns = head_scores(run)
    for layer, head in np.ndindex(3, 4):
        pattern = np.float64(run["pattern", layer][:, head])
        expected = by_hand(PROMPTS, pattern)
        own = [float(found[score].values[layer, head]) for score in found]
        np.testing.assert_allclose(own, expected, atol=1e-5)
        same = [float(from_patterns[score].values[layer, head]) for score in found]
        np.testing.assert_allclose(same, expected, atol=1e-5)


def test_a_planted_previous_token_and_induction_head_score_1():
    said_twice = np.random.default_rng(0).permutation(np.arange(1, 20))[:15]
    scores = head_scores(planted(), [[0, *said_twice, *said_twice]])
    assert float(scores.previous_token[0, 0]) == pytest.approx(1, abs=1e-4)
    assert float(scores.induction[1, 0]) == pytest.approx(1, abs=1e-4)
    assert scores.top("previous_token", 1)[0][:2] == (0, 0)
    assert scores.top("induction", 1)[0][:2] == (1, 0)
    assert max(scores.induction[0, 1], scores.induction[1, 1], scores.induction[0, 0]) < 0.2


def test_the_planted_circuit_says_what_it_has_seen_before():
    llama = planted()
    tokens = repeated_tokens(llama, length=15, rows=2)
    assert (tokens[:, 15:] == tokens[:, :15]).all()
    said = llama.run(tokens).logits.argmax(-1)
    np.testing.assert_array_equal(said[:, 15:-1], tokens[:, 16:])


def test_random_tokens_are_all_different_and_said_twice():
    llama = Llama.from_pretrained("cria")
    tokens = repeated_tokens(llama, length=20, rows=3)
    assert tokens.shape == (3, 41) and (tokens[:, 0] == tokens[0, 0]).all()
    for row in tokens:
        assert len(set(row[1:21])) == 20 and (row[1:21] == row[21:]).all()
        assert not set(row[1:]) & set(llama.tokenizer.special.values())


def test_without_such_a_query_a_score_is_not_a_number():
    scores = head_scores(Llama.random(GQA, std=0.3), [[1, 2, 3]])
    assert np.isnan(scores.induction).all() and not np.isnan(scores.entropy).any()
    assert len(scores.top("induction", 2)) == 2


def test_they_are_a_table_and_a_line(capsys):
    scores = head_scores(Llama.random(GQA, std=0.3), PROMPTS)
    table = scores.to_dataframe()
    assert len(table) == 12 and list(table.columns)[:3] == ["layer", "head", "previous_token"]
    assert repr(scores).startswith("HeadScores(3 layers x 4 heads; highest: previous_token ")
    with pytest.raises(KeyError, match="is no score: previous_token"):
        scores["previous"]


def test_what_is_missing_is_said_as_code():
    llama = Llama.random(GQA, std=0.3)
    with pytest.raises(MissingPointError, match=r"capture=\('q_rot', 'k_rot'\)"):
        head_scores(llama.run(PROMPTS, "z"))
    edit = Replace(("pattern", 0), lambda pattern: pattern * 0.5)
    run = llama.run(PROMPTS, ("q_rot", "k_rot"), edits=edit)
    with pytest.raises(ValueError, match="capture='pattern'"):
        head_scores(run)
    with pytest.raises(ValueError, match="A run has its inputs"):
        head_scores(run, PROMPTS)
    assert dataclasses.is_dataclass(head_scores(llama.run(PROMPTS, "pattern", edits=edit)))
