"""What is captured while a text is written is what a full forward pass has there."""

import jax
import numpy as np
import pytest

from llama_jax import Capture, Llama
from llama_jax import generate as writing
from llama_jax.capture import CaptureError
from llama_jax.plan import BudgetError
from llama_jax.points import resolve
from tests.tiny import GQA, compiled

PROMPTS = [np.arange(11).tolist(), (np.arange(6) * 5 % 96).tolist()]
STEPS = 5


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module", params=[4, 512], ids=["chunked", "whole"])
def pair(request, llama):
    """A generation of two uneven rows, and the run of what was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "LARGEST_CHUNK", request.param)
        patch.setattr(writing, "SMALLEST_CHUNK", min(request.param, 16))
        out = llama.generate(PROMPTS, STEPS, temperature=0, capture="*")
    rows = [p + t[:-1].tolist() for p, t in zip(PROMPTS, out.tokens, strict=True)]
    return out, llama.run(rows, "*")


def _real(name, array, run):
    """A copy with zeros where a row has no position."""
    array = np.array(array)
    for row, length in enumerate(run.lengths):
        if "pattern" in name or "scores" in name:
            array[row, :, length:] = 0
        else:
            array[row, length:] = 0
    return array


def test_every_point_is_that_of_a_full_forward_on_the_same_tokens(pair):
    out, run = pair
    assert out.names == run.names == resolve("*", 3)
    for name in run.names:
        assert out[name].shape == run[name].shape, name
        expected, got = (_real(name, x[name], run) for x in (run, out))
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4, err_msg=name)


CAPTURES = [
    Capture("pattern", reduce=("max_pool", 4)),
    Capture("pattern", reduce=("mean_pool", 3), heads=[1]),
    Capture("resid_post", reduce="last"),
    Capture("resid_post", reduce="norm", positions=[-1, 0, 5]),
    Capture("mlp.act", reduce=("topk", 3)),
    Capture("q", positions=slice(-3, None), heads=[0, 2]),
    Capture("pattern", reduce=("topk", 2), positions=[4]),
    Capture("logits", reduce="last", dtype="bf16"),
]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda c: f"{c.point} {c.reduce} {c.positions}")
def test_reductions_are_those_of_a_run(llama, pair, capture):
    out = llama.generate(PROMPTS, STEPS, temperature=0, capture=capture)
    rows = [p + t[:-1].tolist() for p, t in zip(PROMPTS, out.tokens, strict=True)]
    run = llama.run(rows, capture)
    for name in run.names:
        for got, expected in zip(
            jax.tree.leaves(out[name]), jax.tree.leaves(run[name]), strict=True
        ):
            assert got.shape == expected.shape and got.dtype == expected.dtype
            if capture.reduce is None or capture.reduce == "last" or capture.positions is not None:
                np.testing.assert_allclose(
                    np.asarray(got, np.float32), np.asarray(expected, np.float32), atol=5e-4
                )
    if capture.reduce and capture.reduce[0] in ("max_pool", "mean_pool"):
        for name in run.names:
            np.testing.assert_allclose(out[name], run[name], atol=2e-4)


def test_a_step_has_the_positions_that_it_ran(llama, pair):
    _, run = pair
    steps = list(llama.stream(PROMPTS[0], STEPS, temperature=0, capture=["pattern", "resid_mid"]))
    shapes = [step["pattern", 1].shape for step in steps]
    assert shapes == [(1, 4, 11, 11)] + [(1, 4, 1, 11 + i) for i in range(1, STEPS)]
    whole = np.asarray(run["pattern", 1])[0]
    for i, step in enumerate(steps[1:], 1):
        expected = whole[:, 10 + i, : 11 + i]
        np.testing.assert_allclose(step["pattern", 1][0, :, 0], expected, atol=1e-5)
    assert [step["resid_mid", 0].shape[1] for step in steps] == [11] + [1] * (STEPS - 1)
    pooled = llama.stream(PROMPTS[0], 2, capture=Capture("pattern", reduce=("max_pool", 4)))
    assert [step["pattern", 0].shape for step in pooled] == [(1, 4, 4, 4), (1, 4, 1, 4)]


def test_a_row_that_stops_early_ends_where_it_stopped(llama):
    free = llama.generate(PROMPTS, STEPS, temperature=0)
    stop = int(free.tokens[1, 1])
    out = llama.generate(PROMPTS, STEPS, temperature=0, stop=stop, capture="resid_post")
    assert out.lengths[1] == 2
    rows = [
        p + t[: n - 1].tolist() for p, t, n in zip(PROMPTS, out.tokens, out.lengths, strict=True)
    ]
    run = llama.run(rows, "resid_post")
    for name in run.names:
        assert out[name].shape == run[name].shape
        expected, got = (_real(name, x[name], run) for x in (run, out))
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_capturing_writes_the_same_text_and_a_second_time_compiles_nothing(llama):
    plain = llama.generate(PROMPTS, STEPS, seed=3, temperature=1.0)
    seen = llama.generate(PROMPTS, STEPS, seed=3, temperature=1.0, capture="z")
    assert (plain.tokens == seen.tokens).all()
    with compiled() as programs:
        llama.generate(PROMPTS, STEPS, seed=4, temperature=1.0, capture="z")
    assert not programs


def test_what_cannot_be_captured_is_refused_before_anything_is_written(llama):
    with compiled() as programs:
        with pytest.raises(CaptureError, match=r"use generate"):
            llama.stream(PROMPTS, 3, capture=Capture("z", positions=[0]))
        with pytest.raises(CaptureError, match="position 8 of row 1, which has 6 tokens"):
            llama.generate(PROMPTS, 3, capture=Capture("z", positions=[8]))
        with pytest.raises(CaptureError, match="rows that write more"):
            llama.generate([PROMPTS[0]] * 2, 3, capture=Capture("z", positions=slice(0, None)))
        for slice_ in (slice(0, 10), slice(-8, None), slice(0, None)):
            with pytest.raises(CaptureError, match=r"rows that write more|positions of rows"):
                llama.generate(PROMPTS, 3, capture=Capture("z", positions=slice_))
        for capture in ("z", "logits", Capture("pattern", reduce="last")):
            with pytest.raises(BudgetError, match=r"budget is 1\.0 KiB"):
                llama.generate(PROMPTS, 3, capture=capture, budget="1KiB")
    assert not programs
    assert llama.generate(PROMPTS, 0, capture="z").names == ()
    assert llama.generate(PROMPTS, 2, capture=(name for name in ["embed"])).names == ("embed",)


def test_prompts_and_texts_of_other_lengths_compile_nothing(llama):
    def written(prompt, new):
        for step in llama.stream(prompt, new, capture="pattern"):
            assert step["pattern", 0].ndim == 4
        return llama.generate([prompt, prompt[:2]], new, capture=("pattern", "z"))["z", 0]

    written([1, 2, 3], 6)
    with compiled() as programs:
        written([1, 2, 3, 4, 5], 9)
    assert not programs
