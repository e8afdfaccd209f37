"""The main verbs in the modes that JAX can be put into, and with weights of several dtypes."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llama_jax import Ablate, Capture, Llama, Patch, Replace, Steer, analysis
from llama_jax.model import parameters
from llama_jax.plan import BudgetError
from llama_jax.tune import Batch, train
from tests.tiny import GQA

ONE = dataclasses.replace(GQA, num_hidden_layers=1)
ROWS = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
METRIC = analysis.logit_difference(3, 5)
MODES = {
    "64 bits": ("jax_enable_x64", True),
    "strict promotion": ("jax_numpy_dtype_promotion", "strict"),
    "no rank promotion": ("jax_numpy_rank_promotion", "raise"),
    "debug nans": ("jax_debug_nans", True),
}


@contextlib.contextmanager
def mode(name):
    option, value = MODES[name]
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(scope="module", params=MODES)
def llama(request):
    with mode(request.param):
        yield Llama.random(ONE, std=0.3)


def test_a_run_and_what_is_asked_of_it(llama):
    reduced = [Capture("gate", reduce=("topk", 2)), Capture("z", reduce="norm")]
    reduced += [Capture("pattern", reduce=("mean_pool", 3)), Capture("k", heads=[1], positions=-1)]
    whole = llama.run(ROWS, "*")
    assert whole.check().passed
    assert np.isfinite(np.asarray(whole.loss)[0]).all() and np.isnan(np.asarray(whole.loss)[1, -1])
    kept = llama.run(ROWS, reduced)
    assert kept.top(1)[0].probability == pytest.approx(whole.top(1)[0].probability)
    assert llama.plan(ROWS, reduced, "all").total == kept.nbytes


def test_edits_and_gradients(llama):
    donor = llama.run(ROWS, "resid_mid")
    edits = [
        Ablate("z", heads=[1], to="mean"),
        Ablate("v", to=0.5),
        Patch("resid_mid", donor, positions=[-1]),
        Steer("resid_post", np.linspace(-1, 1, 32), 0.5),
        Replace("act", lambda x: x * 2),
    ]
    assert np.isfinite(llama.run(ROWS, edits=edits).logits).all()
    found = llama.gradients(ROWS, METRIC, ("resid_pre", "up_proj.weight"), edits=edits[:1])
    assert np.isfinite(found["resid_pre"]).all()


def test_writing(llama):
    out = llama.generate(ROWS, 3, temperature=0, capture=("z", Capture("pattern", reduce="norm")))
    steps = list(llama.stream(ROWS, 3, temperature=0, capture="z"))
    assert [step.token[0] for step in steps] == out.tokens[0].tolist()
    assert llama.generate(ROWS, 3, top_k=4).tokens.shape == (2, 3)


def test_analyses(llama):
    run = llama.run(ROWS[:1], "*")
    lens = analysis.logit_lens(run)
    np.testing.assert_allclose(lens.kl[-1], 0, atol=1e-5)
    assert lens.top(2).indices.shape == (1, 1, 6, 2)
    parts = analysis.direct_logit_attribution(run, (3, 5), by="head")
    assert np.isfinite(parts.values).all()
    assert np.isfinite(analysis.residual_decomposition(run).values).all()
    assert np.isfinite(analysis.head_scores(run).previous_token).all()
    assert analysis.attention_map(run, layer=0, head=1, shape=(2, 2)).values.shape == (2, 2)
    assert np.isfinite(analysis.qk_circuit(llama, 0, 1).svd()[1]).all()
    other = [[1, 2, 9, 4, 5, 6]]
    for sweep in (analysis.patch_sweep, analysis.attribution_patching):
        found = sweep(llama, ROWS[:1], other, point="z", metric=METRIC, by="layer,head")
        assert np.isfinite(found.values).all()
    assert len(analysis.compare(run, llama.run(other, "*")).to_dataframe()) > 10
    assert len(analysis.weight_statistics(llama).to_dataframe()) == 12


def test_training(llama):
    batch = Batch(np.array([ROWS[0]], np.int32))
    (state,) = train(llama.edited({}).model, [batch], optax.sgd(0.1), 1, progress=False)
    assert np.isfinite(state.loss)


MIXED = {
    "norms wide": ("bfloat16", "norm", "float32"),
    "one layer wide": ("bfloat16", "layers.0", "float32"),
    "embedding narrow": ("float32", "embed_tokens", "bfloat16"),
    "head wide": ("bfloat16", "lm_head", "float32"),
}


@pytest.mark.parametrize("kind", MIXED)
def test_of_mixed_dtypes_plan_budget_and_run_agree(kind):
    most, part, other = MIXED[kind]
    llama = Llama.random(ONE, std=0.3, dtype=most)
    for name, slot in parameters(llama.model).items():
        if part in name:
            slot.set_value(slot.get_value().astype(other))
    expected = other if part == "embed_tokens" else most
    assert llama.dtype == jnp.dtype(expected) == llama.model.dtype
    plan, run = llama.plan(ROWS, "*"), llama.run(ROWS, "*")
    assert run.dtype == expected
    for row in plan.rows:
        held = run[row.point]
        assert (held.dtype.name, held.shape, held.nbytes) == (row.dtype, row.shape, row.bytes), row
    assert run.nbytes == plan.total
    llama.run(ROWS, "*", budget=plan.total)
    with pytest.raises(BudgetError):
        llama.run(ROWS, "*", budget=plan.total - 1)
    assert (
        llama.generate(ROWS, 2, temperature=0, capture="resid_post")["resid_post"].dtype == expected
    )
