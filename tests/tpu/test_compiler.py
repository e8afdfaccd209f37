"""Programs for TPUs, by their own compiler, on a machine that has none: `make tpu`."""

import dataclasses
import re

import jax
import pytest

from llama_jax import LlamaConfig, fit
from llama_jax.parallel.fit import FitError

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra [tpu]")
LLAMA_70B = LlamaConfig.preset("llama-3.1-70b")
TWO_LAYERS = dataclasses.replace(LLAMA_70B, num_hidden_layers=2)
SMALL = dataclasses.replace(LlamaConfig.preset("llama-3.2-1b"), num_hidden_layers=2)


def counts(report):
    return {each.kind: each.count for each in report.collectives}


def test_a_70b_decode_step_on_16_chips():
    report = fit("llama-3.1-70b", "v5e:4x4", batch=8, context=2048)
    assert report.fits and report.count == 16
    assert (report.mesh["tensor"], report.mesh["group"]) == (8, 2)
    assert counts(report) == {"all-reduce": 161}, "two a layer and one of the embedding"
    assert report.per_layer == {"all-reduce": 161 / 80}
    norms, keys_and_values = 161 * 8192, 80 * 2 * 1024 * 8192
    rest = LLAMA_70B.parameter_count - norms - keys_and_values
    assert report.breakdown["weights"] == 2 * (rest // 16 + keys_and_values // 8 + norms)
    assert report.breakdown["cache"] == 80 * 2 * 8 * 2048 * 128 * 2 + 8 * 4
    assert abs(report.bytes_per_device / 2**30 - 9.15) < 0.05
    assert report.compile_seconds < 60
    assert sum(report.breakdown.values()) == report.bytes_per_device


def test_what_the_rules_shard_is_held_once():
    report = fit(TWO_LAYERS, "v5e:2x4", batch=8, context=2048, mesh="tensor=8")
    per_layer = 8192 * (8192 * 2 + 1024 * 2 + 28672 * 3)
    weights = 2 * (2 * per_layer + 2 * 128256 * 8192) // 8 + 2 * 5 * 8192
    assert report.breakdown["weights"] == weights
    assert report.breakdown["other"] < 64 * 2**20, "the program, tokens and logits"
    assert counts(report) == {"all-reduce": 5}


def test_a_chunk_of_a_prompt_sends_as_often_and_more():
    one = fit(TWO_LAYERS, "v5e:2x4", batch=2, context=4096)
    chunk = fit(TWO_LAYERS, "v5e:2x4", batch=2, context=4096, task="prefill")
    assert counts(one) == counts(chunk) == {"all-reduce": 5}
    sent = [sum(each.bytes for each in report.collectives) for report in (one, chunk)]
    assert 1900 < sent[1] / sent[0] < 2100, "2,048 tokens and not one"
    assert chunk.seconds > one.seconds and chunk.flops > 1000 * one.flops


def test_a_cache_that_is_shared_out_by_position():
    report = fit(SMALL, "v5e:2x4", context=65536, mesh="tensor=4, sequence=2")
    half = fit(SMALL, "v5e:2x2", context=65536, mesh="tensor=4")
    assert report.breakdown["cache"] - 4 == (half.breakdown["cache"] - 4) / 2
    gathered = sum(x.bytes for x in report.collectives if x.kind != "all-reduce")
    assert gathered < 2**20, "decoding sends no keys and values"


def test_what_does_not_fit_says_what_it_needs():
    report = fit("llama-3.1-8b", "v5e:1x1", batch=8, context=2048)
    assert not report.fits
    assert report.bytes_per_device > 16.9 * 2**30
    assert "does NOT fit" in repr(report) and "compiler stopped" in repr(report)


def test_a_training_step_shares_out_weights_and_moments():
    report = fit(SMALL, "v5p:2x2x1", batch=4, context=1024, task="train")
    assert report.mesh["fsdp"] == 4
    assert report.breakdown["optimizer"] == pytest.approx(2 * report.breakdown["weights"], rel=1e-3)
    whole = 2 * SMALL.parameter_count
    assert report.breakdown["weights"] == pytest.approx(whole / 4, rel=1e-3)
    assert re.search("Logits at every position are .* on each device", repr(report))


def test_captures_are_counted_on_their_devices():
    without = fit(TWO_LAYERS, "v5e:2x4", batch=8, context=2048, task="prefill")
    captured = fit(TWO_LAYERS, "v5e:2x4", batch=8, context=2048, task="prefill", capture="mlp.act")
    size = 2 * 8 * 2048 * 28672 * 2 // 8
    assert captured.breakdown["captures"] == size
    assert captured.bytes_per_device - without.bytes_per_device > 0.9 * size


def test_a_chip_of_two_devices_and_one_chip_alone():
    assert fit(SMALL, "tpu7x:2x2x1", batch=8, context=1024).count == 8
    assert fit(SMALL, "v6e:1x1", batch=8, context=1024).collectives == ()


def test_an_unknown_slice_lists_those_that_there_are():
    with pytest.raises(FitError, match=r"v5e:3x3.*v5e:2x2, v5e:2x4, v5e:4x4"):
        fit(SMALL, "v5e:3x3")


def test_the_devices_at_hand_are_what_they_were():
    fit(SMALL, "v5e:2x2", context=256)
    assert jax.devices()[0].platform == "cpu"
