import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Ablate, Llama, Steer
from llama_jax.points import POINTS, PointError
from tests.tiny import GQA, compiled

A = np.arange(9)[None]
SMALL = dataclasses.replace(GQA, num_hidden_layers=2)
NAMES = [point.local if point.in_layer else point.name for point in POINTS]


def difference(logits):
    return logits[:, 3] - logits[:, 5]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(SMALL, std=0.3)


@pytest.mark.exact
def test_every_point_s_gradient_is_that_of_central_differences():
    with jax.enable_x64(True):
        llama = Llama.random(SMALL, std=0.3, dtype="float64")
        rng = np.random.default_rng(0)
        shapes = {name: x.shape for name, x in llama.run(A, "*", logits="last").captured.items()}
        points = [name if name in shapes else (name, 0) for name in NAMES[:-1]]
        found = llama.gradients(A, difference, points)
        step = 1e-5
        directions = {name: rng.standard_normal(shapes[name]) for name in found}
        for name in directions:
            if name.endswith(("scores", "pattern")):  # what is not read has no gradient
                directions[name] = np.tril(directions[name])

        def moved(name, by):
            """One program for all: each point has a step of its own, of 0 but for one."""
            edits = [Steer(n, d, scale=by * (n == name)) for n, d in directions.items()]
            return float(difference(llama.run(A, edits=edits, logits="last").logits[:, 0])[0])

        for name, gradient in found.items():
            expected = (moved(name, step) - moved(name, -step)) / (2 * step)
            got = float(jnp.sum(gradient * directions[name]))
            assert got == pytest.approx(expected, rel=1e-6, abs=1e-9), name


def test_weights_gradients_are_those_of_central_differences():
    with jax.enable_x64(True):
        llama = Llama.random(SMALL, std=0.3, dtype="float64")
        names = ("layers.1.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight")
        found = llama.gradients(A, difference, names)
        assert tuple(found) == names
        rng, step = np.random.default_rng(1), 1e-5
        for name, gradient in found.items():
            weight = _weight(llama, name)
            direction = rng.standard_normal(gradient.shape)
            at = [
                difference(
                    llama.edited({name: weight + sign * step * direction})
                    .run(A, logits="last")
                    .logits[:, 0]
                )
                for sign in (1, -1)
            ]
            expected = float((at[0] - at[1])[0]) / (2 * step)
            assert float(jnp.sum(gradient * direction)) == pytest.approx(expected, rel=1e-6), name


def _weight(llama, name):
    value = llama.model
    for part in name.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value.get_value()


def test_closed_forms(llama):
    run = llama.run(A, ("norm.out", "act"))
    found = llama.gradients(A, difference, ["norm.out", "logits", "lm_head.weight", ("act", -1)])
    head = llama.model.lm_head.weight.get_value()
    # At the last position the logits are a linear map of norm.out, elsewhere nothing reads it.
    np.testing.assert_allclose(found["norm.out"][0, -1], head[3] - head[5], rtol=1e-5)
    assert (found["norm.out"][0, :-1] == 0).all()
    np.testing.assert_array_equal(found["logits"][0, 0], np.eye(96)[3] - np.eye(96)[5])
    np.testing.assert_allclose(found["lm_head.weight"][3], run["norm.out"][0, -1], rtol=1e-5)
    assert (found["act"][0, :-1] == 0).all() and found.metric.shape == (1,)
    np.testing.assert_allclose(found.metric, difference(run.logits[:, -1]), rtol=1e-4)


def test_rows_have_their_own_gradients_and_padding_none(llama):
    rows = [A[0].tolist(), (A[0, :5] * 3).tolist()]
    both = llama.gradients(rows, difference, "resid_post")
    alone = llama.gradients(rows[1:], difference, "resid_post")
    np.testing.assert_allclose(both["resid_post", 0][1, :5], alone["resid_post", 0][0], atol=1e-6)
    assert (both["resid_post", 0][1, 5:] == 0).all()


def test_a_metric_of_all_positions_and_edits_under_a_gradient(llama):
    def mean_square(logits):
        return jnp.mean(logits**2)

    edits = Ablate(("z", 1), heads=[0])
    found = llama.gradients(A, mean_square, ("z", 1), edits=edits, logits="all")
    assert found["z"].shape == (1, 9, 4, 16) and found.metric.shape == ()
    expected = jnp.mean(llama.run(A, edits=edits).logits ** 2)
    np.testing.assert_allclose(found.metric, expected, rtol=1e-5)


def test_other_prompts_and_strengths_compile_nothing(llama):
    llama.gradients(A, difference, "resid_post", edits=Ablate("embed", to=1.0, positions=[0]))
    with compiled() as programs:
        llama.gradients(A + 3, difference, "resid_post", edits=Ablate("embed", positions=[4]))
    assert not programs


def test_what_cannot_be_differentiated_says_so(llama):
    with pytest.raises(ValueError, match=r"shape \[1, 96\].*\[1\], or one number"):
        llama.gradients(A, lambda logits: logits, "embed")
    with pytest.raises(PointError, match="Near"):
        llama.gradients(A, difference, "resid_pots")
    with pytest.raises(PointError, match=r"No weight.*Near: layers.0.self_attn.o_proj.weight"):
        llama.gradients(A, difference, "layers.0.self_attn.oproj.weight")
    with pytest.raises(PointError, match=r"No weight.*layers 0 to 1"):
        llama.gradients(A, difference, ("o_proj.weight", 7))
    with pytest.raises(ValueError, match="names nothing"):
        llama.gradients(A, difference, [])
    with pytest.raises(PointError, match="was not captured"):
        llama.gradients(A, difference, "embed")["z"]
