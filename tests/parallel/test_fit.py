"""`fit` without a compiler for TPUs: from shapes, and for the devices at hand."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import treescope

from llama_jax import LlamaConfig, fit
from llama_jax.dtypes import DtypeError
from llama_jax.parallel import MeshError
from llama_jax.parallel import fit as fitting
from tests import tiny

SMALL = dataclasses.replace(
    tiny.GQA, num_attention_heads=8, num_key_value_heads=4, vocab_size=128, intermediate_size=64
)


def test_shapes_tell_weights_and_cache():
    report = fit("llama-3.1-405b", "h200:8", batch=2, context=4096)
    config = LlamaConfig.preset("llama-3.1-405b")
    norms = (2 * 126 + 1) * 16384
    assert report.breakdown["weights"] == 2 * ((config.parameter_count - norms) // 8 + norms)
    assert report.breakdown["cache"] == 126 * 2 * 2 * 4096 * 128 * 2 + 2 * 4
    assert report.fits and report.memory == 141_000_000_000
    assert "temporaries are left out" in report.method and "nvidia.com" in report.estimate["source"]


def test_what_is_too_large_does_not_fit():
    report = fit("llama-3.1-405b", "h100:8", batch=8, context=8192)
    assert not report.fits
    assert "does NOT fit" in repr(report) and "!" in report.bar()
    assert "too much" in treescope.render_to_text(report) + treescope.render_to_html(
        report, compressed=False
    )


def test_training_holds_two_moments():
    report = fit("llama-3.2-1b", "h100:8", batch=8, context=4096, task="train")
    assert report.mesh["fsdp"] == 8
    assert report.breakdown["optimizer"] == 2 * report.breakdown["weights"] + 4


def test_training_holds_gradients_or_what_was_kept_for_them():
    deep = dataclasses.replace(LlamaConfig.preset("llama-3.1-8b"), num_hidden_layers=48)
    report = fit(deep, "h100:1", batch=1, context=2048, task="train")
    weights = report.breakdown["weights"]
    assert report.breakdown["gradients"] == weights and report.breakdown["temporaries"] == 0
    assert 3 * weights + 4 < report.memory < 4 * weights and not report.fits
    report = fit("llama-3.2-1b", "h100:1", batch=64, context=2048, task="train")
    kept = 64 * 2048 * (16 * 2048 * 2 + 128256 * 4)
    assert report.breakdown["gradients"] + report.breakdown["temporaries"] == kept
    assert not report.fits


def test_devices_that_would_have_nothing_to_do_are_refused():
    for devices, task in (("h100:9999999", "decode"), ("h100:999999999", "train")):
        with pytest.raises(fitting.FitError, match=f"{devices}: 8 x 8,192 positions .*Give fewer"):
            fit("llama-3.2-1b", devices, batch=8, task=task)
    with pytest.raises(fitting.FitError, match="1 x 32 positions"):
        fit(SMALL, "h100:64", context=32, mesh="sequence=64")
    assert all(found.count <= 64 for found in fit(SMALL, None, context=8))


def test_the_estimate_is_what_its_rates_allow():
    report = fit("llama-3.2-1b", "h100:1", batch=1, context=4096)
    held = report.breakdown["weights"] + report.breakdown["cache"]
    assert report.seconds == pytest.approx(held / 3350e9)
    assert "memory" in report.estimate["bound"]
    flops = fit("llama-3.2-1b", "h100:1", batch=1, context=4096, task="prefill").flops
    layers = 1_235_814_400 - 128256 * 2048
    scores = 4 * 2048 * 4096 * 2048 * 16
    assert flops == 2 * 2048 * layers + scores + 2 * 128256 * 2048


def test_the_local_compiler_counts_what_the_program_takes():
    report = fit(SMALL, "local", batch=4, context=256, dtype="f32", capture="resid_post")
    assert report.count == len(jax.devices())
    assert (
        report.breakdown["captures"]
        * math.prod(size for axis, size in report.mesh.items() if axis in ("data", "fsdp"))
        == 4 * 32 * 4 * SMALL.num_hidden_layers
    )
    assert report.breakdown["temporaries"] > 0
    assert sum(report.breakdown.values()) == report.bytes_per_device
    assert math.isnan(report.seconds) or report.estimate["source"]


def test_collectives_of_the_local_program_are_counted():
    mesh = {"tensor": 4, "data": len(jax.devices()) // 4}
    report = fit(SMALL, "local", batch=mesh["data"], context=256, mesh=mesh)
    assert [(x.kind, x.count) for x in report.collectives] == [
        ("all-reduce", 2 * SMALL.num_hidden_layers + 1)
    ]
    assert report.per_layer["all-reduce"] == pytest.approx(2 + 1 / 3)


def test_a_training_step_is_compiled_for_the_devices_at_hand():
    given = {"batch": len(jax.devices()), "context": 64, "task": "train", "dtype": "f32"}
    report = fit(SMALL, "local", **given)
    assert report.breakdown["temporaries"] > 0 and report.collectives
    shapes = fit(SMALL, f"h100:{report.count}", mesh=report.mesh, **given)
    assert 0 < shapes.bytes_per_device <= report.bytes_per_device


def test_the_smallest_slices_that_fit():
    found = {s.devices.split(":")[0]: s for s in fit("llama-3.1-70b", None, batch=8, context=8192)}
    assert found["v5e"].devices == "v5e:4x4" and found["v5p"].devices == "v5p:2x2x1"
    assert found["h100"].devices == "h100:4"
    assert all(s.bytes_per_device <= 0.9 * s.memory for s in found.values())
    nothing = fit("llama-3.1-405b", None, batch=64, context=131072)
    assert "a100" not in {s.devices.split(":")[0] for s in nothing}


def test_training_finds_a_mesh_for_any_number_of_devices():
    def mesh(devices, batch):
        report = fit("llama-3.1-8b", devices, batch=batch, task="train")
        return {axis: size for axis, size in report.mesh.items() if size > 1}

    assert mesh("h100:8", 8) == {"fsdp": 8}
    assert mesh("h100:8", 1) == {"tensor": 8}
    assert mesh("h100:64", 1) == {"fsdp": 64}, "more than there are heads: rows are padded"
    assert mesh("h100:3", 1) == {"data": 3}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": 3, "mesh": "data=2, tensor=4"}, "1 rows of padding"),
        ({"mesh": "tensor=8"}, "more than the 4 KV heads: each, and its cache, is held by 2"),
        ({"mesh": "fsdp=8", "batch": 8}, "every step gathers all weights"),
        ({"mesh": "sequence=8", "context": 12}, "do not share out 12 positions"),
        ({"mesh": "sequence=8", "task": "prefill"}, "gathers the keys and values"),
        ({"mesh": "tensor=4, data=2", "batch": 8, "task": "train"}, "Logits at every position"),
    ],
)
def test_what_will_be_slow_is_said(given, says):
    report = fit(SMALL, "h100:8", **{"context": 512, **given})
    assert any(says in text for text in report.warnings), report.warnings
    assert says in repr(report)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"devices": "v9:2x2"}, fitting.FitError, "no chip is called 'v9'. Known are v5e"),
        ({"devices": "v5e:3x3"}, fitting.FitError, "no such slice. Known are v5e:1x1"),
        ({"devices": "gpu"}, fitting.FitError, "'gpu': .*gpu"),
        ({"devices": "h100"}, fitting.FitError, "say how many, as h100:8"),
        ({"task": "sleep"}, fitting.FitError, "'decode', 'prefill' or 'train'"),
        ({"batch": 0}, fitting.FitError, "batch is 0"),
        ({"batch": True}, fitting.FitError, "batch is True; it must be a whole number"),
        ({"batch": [8]}, fitting.FitError, r"batch is \[8\]"),
        ({"batch": 2**31}, fitting.FitError, "from 1 to 2,147,483,647"),
        ({"context": 2.0}, fitting.FitError, "context is 2.0"),
        ({"devices": ["h100:8"]}, fitting.FitError, r"devices is \['h100:8'\]; it must be text"),
        ({"devices": 8}, fitting.FitError, "devices is 8"),
        ({"devices": "h100:" + 5000 * "9"}, fitting.FitError, "say how many"),
        ({"task": ["train"]}, fitting.FitError, "it must be 'decode'"),
        ({"dtype": [1]}, DtypeError, r"dtype is \[1\]"),
        ({"mesh": 8}, MeshError, 'mesh is 8; it must be text such as "tensor=8"'),
        ({"mesh": [8]}, MeshError, r"mesh is \[8\]"),
        ({"mesh": {"tensor": True}}, MeshError, "tensor=True"),
        ({"mesh": "tensor=" + 5000 * "9"}, MeshError, "write an axis and its size"),
        ({"mesh": "tensor=99999999, data=99999999"}, MeshError, "more devices than there can be"),
        ({"context": 10**6}, fitting.FitError, r"context is 1,000,000; .* has 1,024 positions"),
        ({"mesh": "tensor=2"}, fitting.FitError, "The mesh has 2 devices, and h100:8 has 8"),
        ({"mesh": "fsdp=64, tensor=3"}, MeshError, "tensor=3 does not share out 4"),
        ({"task": "train", "capture": "embed"}, fitting.FitError, "returns no captures"),
    ],
)
def test_bad_input_is_refused_in_words(given, error, says):
    with pytest.raises(error, match=says):
        fit(SMALL, **{"devices": "h100:8", "context": 256, **given})


@pytest.mark.parametrize("model", [None, ["llama-3.2-1b"], 8, {}])
def test_what_is_no_model_is_refused_in_words(model):
    with pytest.raises(fitting.FitError, match=r"model is .*it must be a preset's name or a Llama"):
        fit(model, "h100:8")


def test_numbers_of_other_libraries_are_numbers():
    assert fit(SMALL, "h100:8", batch=np.int64(4), context=np.int32(64)).batch == 4


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    fitting._topology.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'llama-jax\[tpu\]'"):
        fit(SMALL, "v5e:2x2", context=256)


def test_it_is_drawn_with_a_bar_for_each_device():
    page = treescope.render_to_html(fit("llama-3.2-1b", "h100:8"), compressed=False)
    assert page.count("device  ") >= 8
    assert len(page) < 60_000
