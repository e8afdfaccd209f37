import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Ablate, Capture, Llama, Replace
from tests.tiny import GQA, MHA, MQA

ROWS = [np.arange(20).tolist(), (np.arange(13) * 5 % 96).tolist()]
TIED = dataclasses.replace(GQA, tie_word_embeddings=True)


@pytest.mark.exact
@pytest.mark.parametrize("config", [MHA, GQA, MQA, TIED], ids=["MHA", "GQA", "MQA", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_identity_holds_on_a_run_of_everything(config, dtype):
    check = Llama.random(config, std=0.3, dtype=dtype).run(ROWS, "*").check()
    assert check.passed, check
    assert len(check) == 13 and all(outcome.passed for outcome in check)


@pytest.mark.exact
def test_every_identity_holds_to_1e_10_in_f64():
    with jax.enable_x64(True):
        check = Llama.random(GQA, std=0.3, dtype="float64").run(ROWS, "*").check()
        assert check.passed, check
        assert all(outcome.tolerance < 1e-8 for outcome in check)


@pytest.fixture(scope="module")
def run():
    return Llama.random(GQA, std=0.3).run(ROWS, "*")


BREAKS = {
    "self_attn.pattern": {0, 2, 3},
    "self_attn.q_rot": {2},
    "self_attn.v": {3},
    "self_attn.z": {3, 5},
    "self_attn.head_out": {4},
    "mlp.gate": {6},
    "mlp.act": {6, 7},
    "mlp.out": {7, 9, 11},
    "self_attn.out": {4, 5, 8, 11},
    "resid_mid": {8, 9},
    "resid_pre": {8, 10},
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_number_fails_the_identities_that_read_it_and_no_other(run, name):
    full = f"layers.1.{name}"
    place = (0, 0, 3, 2) if name.endswith("pattern") else (0, 3)
    wrong = {**run.captured, full: run[full].at[place].add(0.01)}
    check = dataclasses.replace(run, captured=wrong).check()
    assert not check.passed
    assert {i for i, outcome in enumerate(check) if outcome.passed is False} == BREAKS[name]


def test_what_is_above_the_diagonal_and_what_is_nan_fails(run):
    full = "layers.2.self_attn.pattern"
    wrong = {**run.captured, full: run[full].at[0, 0, 3, 4].set(1e-3)}
    failed = dataclasses.replace(run, captured=wrong).check()[1]
    assert failed.passed is False and failed.note == "largest in layer 2"
    bad = {**run.captured, "layers.0.mlp.out": run["layers.0.mlp.out"].at[0, 0, 0].set(jnp.nan)}
    assert not dataclasses.replace(run, captured=bad).check().passed


def test_a_capture_in_bf16_is_measured_as_bf16():
    check = Llama.random(GQA, std=0.3).run(ROWS, Capture("*", dtype="bf16")).check()
    assert check.passed, check


def test_a_nan_is_not_hidden_by_a_later_layer():
    nan = Replace(("mlp.act", 0), lambda x: x * jnp.nan)
    run = Llama.random(GQA, std=0.3).run(ROWS, "*", edits=[nan, Ablate(("resid_pre", 1))])
    assert run.check()[7].passed is False
    one = dataclasses.replace(GQA, num_hidden_layers=1)
    assert Llama.random(one).run(ROWS, "*").check()[10].note == "the model has one layer"


def test_what_was_not_captured_is_skipped_and_says_so():
    llama = Llama.random(GQA, std=0.3)
    check = llama.run(ROWS, ("pattern", ("z", 1), "v")).check()
    by_name = {outcome.name: outcome for outcome in check}
    assert check.passed and by_name["pattern rows sum to 1"].passed
    z = by_name["z = pattern v"]
    assert z.passed and "self_attn.z was not captured whole in 2 of 3 layers" in z.note
    skipped = by_name["mlp.out = sum over neurons of W_down act"]
    assert skipped.passed is None and skipped.note == "mlp.out was not captured whole"
    part = llama.run(ROWS, Capture("pattern", heads=[0])).check()
    assert not part.passed and {outcome.passed for outcome in part} == {None}
    assert "skipped" in repr(part) and "13 skipped" in repr(part)


def test_what_was_edited_on_purpose_is_skipped():
    llama = Llama.random(GQA, std=0.3)
    edits = [Ablate(("pattern", 1), heads=[0]), Replace(("mlp.out", 2), jnp.tanh)]
    check = llama.run(ROWS, "*", edits=edits).check()
    assert check.passed, check
    assert "self_attn.pattern was edited in 1 of 3 layers" in check[0].note
    assert "mlp.out was edited in 1 of 3 layers" in check[7].note
    louder = Replace("scale", lambda x: x * 1.1)
    edits = [Ablate("head_out", heads=[1]), louder, Ablate("z", heads=0)]
    check = llama.run(ROWS, "*", edits=edits).check()
    assert check.passed, check
