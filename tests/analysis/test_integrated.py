"""Integrated gradients: what is shared out is all there is."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.analysis import integrated_gradients, logit, logit_difference
from tests.tiny import GQA, compiled

SMALL = dataclasses.replace(GQA, num_hidden_layers=2)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]
METRIC = logit_difference(3, 5)


@pytest.fixture(scope="module")
def llama():
    return Llama.random(SMALL, std=0.1)


@pytest.mark.parametrize("point", ["embed", ("resid_mid", 1), ("z", 0), ("mlp.act", 1)])
def test_the_values_sum_to_the_change_within_a_percent_at_50_steps(llama, point):
    found = integrated_gradients(llama, PROMPTS, METRIC, point)
    total = np.asarray(found.values).reshape(2, -1).sum(-1)
    change = np.asarray(found.metric - found.baseline)
    np.testing.assert_allclose(found.metric, METRIC(llama.run(PROMPTS, logits="last").logits[:, 0]))
    np.testing.assert_allclose(total, change, rtol=0.01)
    np.testing.assert_allclose(found.error, total - change, atol=1e-5)


def test_what_is_missing_shrinks_as_the_steps_grow():
    llama = Llama.random(SMALL, std=0.3)
    errors = []
    for steps in (4, 12, 50):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = integrated_gradients(llama, PROMPTS[:1], METRIC, steps=steps)
        errors.append(abs(float(found.error[0])))
    assert errors[2] < 0.01 < errors[0] and errors[2] < errors[1] / 5


def test_few_steps_on_a_bent_way_are_warned_of():
    llama = Llama.random(SMALL, std=0.3)
    with pytest.warns(UserWarning, match="are not explained at 2 steps"):
        integrated_gradients(llama, PROMPTS[:1], METRIC, baseline=0.0, steps=2)


def test_where_the_metric_is_linear_one_step_is_exact(llama):
    found = integrated_gradients(llama, PROMPTS, METRIC, "norm.out", steps=1)
    weight = np.asarray(llama.model.lm_head.weight[...])
    run = llama.run(PROMPTS, "norm.out")
    for row, last in enumerate((6, 3)):
        x = np.asarray(run["norm.out"][row])
        change = x[last] - x[: last + 1].mean(0)
        expected = change * (weight[3] - weight[5])
        np.testing.assert_allclose(found.values[row, last], expected, atol=1e-6)
        assert not np.asarray(found.values[row, :last]).any()


def test_a_tensor_that_is_its_own_baseline_adds_nothing(llama):
    run = llama.run(PROMPTS, "embed")
    found = integrated_gradients(llama, PROMPTS, METRIC, baseline=run, steps=2)
    assert not np.asarray(found.values).any() and (np.asarray(found.error) == 0).all()


def test_from_another_prompt_only_what_differs_has_a_part(llama):
    other = llama.run([[1, 2, 30, 4, 5, 6, 7], PROMPTS[1]], "embed")
    found = integrated_gradients(llama, PROMPTS, METRIC, baseline=other)
    parts = np.asarray(found.by_position.values)
    assert parts[0, 2] != 0 and np.count_nonzero(parts) == 1
    assert parts[0, 2] == pytest.approx(float(found.metric[0] - found.baseline[0]), rel=0.01)


def test_in_double_precision_nothing_is_left_over():
    with jax.enable_x64(True):
        llama = Llama.random(SMALL, std=0.1, dtype="float64")
        found = integrated_gradients(llama, PROMPTS, METRIC, ("resid_mid", 0))
        assert np.abs(found.error).max() < 1e-9


def test_steps_compile_nothing_after_the_first(llama):
    def once(steps, **given):
        return integrated_gradients(llama, PROMPTS, METRIC, ("z", 1), steps=steps, **given)

    once(2)
    with compiled() as programs:
        once(3)
    assert not programs


def test_it_is_a_table_of_positions():
    llama = Llama.from_pretrained("cria")
    found = integrated_gradients(llama, "Once upon a", logit(" time"), ("resid_mid", 2))
    table = found.to_dataframe()
    assert list(table.columns) == ["batch", "position", "position_token", "value"]
    assert table.position_token.tolist()[1:] == ["Once", " upon", " a"]
    assert repr(found).startswith(
        "IntegratedGradients(4 positions x 192 dimensions, layers.2.resid"
    )


def test_bad_input_is_refused_in_words(llama):
    for given, says in (
        ({"point": "resid_post"}, "means 2 tensors"),
        ({"steps": 0}, "steps is 0"),
        ({"baseline": "zero"}, "must be 'mean', a number, an array or a Run"),
        ({"baseline": np.zeros(5)}, r"baseline has shape \[5\]; embed has \[2, 7, 32\]"),
    ):
        with pytest.raises(ValueError, match=says):
            integrated_gradients(llama, PROMPTS, METRIC, **given)
