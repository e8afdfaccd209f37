"""Biases on a mesh: laid out as the outputs that they add to, and the same numbers."""

import dataclasses

import numpy as np
import pytest

from llama_jax import Llama, fit
from llama_jax.model import parameters
from tests.parallel.meshes import CONFIG, close
from tests.test_biases import biased

pytestmark = pytest.mark.usefixtures("many_devices")

BIASED = dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True)
ROWS = [np.arange(20).tolist(), (np.arange(13) * 5 % 96).tolist()]
FULL = "data=2,fsdp=2,tensor=2"
PARTS = {
    "self_attn.q_proj": (64,),
    "self_attn.k_proj": (32,),
    "self_attn.v_proj": (32,),
    "self_attn.o_proj": (64,),
    "mlp.gate_proj": (40,),
    "mlp.up_proj": (40,),
    "mlp.down_proj": (64,),
}


def test_a_checkpoint_is_read_into_parts_and_gives_the_logits_of_one_device(tmp_path):
    one = biased(BIASED)
    one.save(tmp_path / "llama")
    for mesh in (FULL, "tensor=16"):
        many = Llama.from_pretrained(tmp_path / "llama", mesh=mesh)
        if mesh == FULL:
            for name, part in PARTS.items():
                bias = parameters(many.model)[f"layers.1.{name}.bias"].get_value()
                assert bias.addressable_shards[0].data.shape == part, name
        close(many.run(ROWS).logits, one.run(ROWS).logits)


def test_fit_counts_what_a_device_holds_of_them():
    weights = [fit(c, "h100:8", context=64, mesh="tensor=8") for c in (BIASED, CONFIG)]
    more = weights[0].breakdown["weights"] - weights[1].breakdown["weights"]
    shared, whole = 128 + 2 * 64 + 2 * 80, 2 * 128  # o_proj's and down_proj's are on every device
    assert more == 2 * 2 * (shared // 8 + whole)
