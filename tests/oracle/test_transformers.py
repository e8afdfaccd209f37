"""Every architecture variant against transformers' eager attention, in f32, over 300 positions."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama_jax import Llama, LlamaConfig, config_json
from llama_jax.config import ConfigError, RopeScaling
from llama_jax.model.rope import inverse_frequencies, rotary_tables
from tests.tiny import GQA

HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
# Small original lengths, so that 300 positions meet all three bands of the scaling.
SCALINGS = {
    "unscaled": None,
    "factor8": RopeScaling(8.0, 1.0, 4.0, 64),
    "factor32": RopeScaling(32.0, 1.0, 4.0, 64),
}
VARIANTS = list(itertools.product(HEADS, ("untied", "tied"), SCALINGS, ("", "own_head_dim")))
TOKENS = np.random.default_rng(0).integers(0, GQA.vocab_size, (2, 300))


def variant(heads, tying, scaling, head_dim) -> LlamaConfig:
    return dataclasses.replace(
        GQA,
        num_hidden_layers=2,
        num_key_value_heads=HEADS[heads],
        tie_word_embeddings=tying == "tied",
        rope_scaling=SCALINGS[scaling],
        head_dim=16 if head_dim else GQA.hidden_size // GQA.num_attention_heads,
        rms_norm_eps=1e-5,
    )


def reference(config: LlamaConfig, seed: int = 0) -> transformers.LlamaForCausalLM:
    """A random transformers Llama whose attention is far from uniform."""
    torch.manual_seed(seed)
    made = transformers.LlamaForCausalLM._from_config(
        transformers.LlamaConfig(**config.to_huggingface(), initializer_range=0.2),
        attn_implementation="eager",
    )
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return made.float().eval()


@pytest.mark.parametrize(("heads", "tying", "scaling", "head_dim"), VARIANTS)
def test_logits_and_hidden_states_and_attentions_are_transformers(
    heads, tying, scaling, head_dim, tmp_path
):
    torch_model = reference(variant(heads, tying, scaling, head_dim))
    torch_model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = torch_model(
            torch.tensor(TOKENS), output_hidden_states=True, output_attentions=True
        )
    ours = Llama.from_pretrained(tmp_path).run(TOKENS, capture=("resid_pre", "pattern", "norm.out"))
    np.testing.assert_allclose(ours.logits, theirs.logits.numpy(), rtol=0, atol=5e-5)
    for i in range(2):
        np.testing.assert_allclose(
            ours["resid_pre", i], theirs.hidden_states[i].numpy(), rtol=0, atol=5e-5
        )
        np.testing.assert_allclose(
            ours["pattern", i], theirs.attentions[i].numpy(), rtol=0, atol=1e-5
        )
    np.testing.assert_allclose(ours["norm.out"], theirs.hidden_states[2].numpy(), rtol=0, atol=5e-5)


# Others' Llamas: what a Llama 3 has not.
OTHERS = {
    "attention bias": {"attention_bias": True},
    "MLP bias": {"mlp_bias": True},
    "linear": {"rope_scaling": RopeScaling(4.0, rope_type="linear")},
    "all": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": RopeScaling(2.5, rope_type="linear"),
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_biases_and_linear_scaling_are_transformers_and_survive_the_way_back(kind, tmp_path):
    config = dataclasses.replace(variant("GQA", "untied", "unscaled", ""), **OTHERS[kind])
    theirs = reference(config)
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        made = theirs(torch.tensor(TOKENS), output_hidden_states=True, output_attentions=True)
    llama = Llama.from_pretrained(tmp_path / "theirs")
    ours = llama.run(TOKENS, capture=("resid_pre", "pattern"))
    assert llama.config == config
    np.testing.assert_array_equal(
        inverse_frequencies(config), theirs.model.rotary_emb.inv_freq.numpy()
    )
    np.testing.assert_allclose(ours.logits, made.logits.numpy(), rtol=0, atol=5e-5)
    np.testing.assert_allclose(
        ours["resid_pre", 1], made.hidden_states[1].numpy(), rtol=0, atol=5e-5
    )
    np.testing.assert_allclose(ours["pattern", 1], made.attentions[1].numpy(), rtol=0, atol=1e-5)
    llama.save(tmp_path / "ours")
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert LlamaConfig.from_huggingface(back.config.to_dict()) == config


IGNORED = {
    "unsloth_fixed": True,
    "unsloth_version": "2025.1.5",
    "auto_map": {"AutoConfig": "configuration.Mine"},
    "layer_types": ["full_attention"] * 2,
    "keys_to_ignore_at_inference": ["past_key_values"],
    "pretraining_tp": 2,
    "max_window_layers": 1,
    "use_sliding_window": False,
    "some_new_setting": 1,
    "text_encoder": {},
    "add_cross_attention": True,
    "chunk_size_feed_forward": 2,
    "is_decoder": True,
    "pruned_heads": {"0": [1]},
    "qk_norm": True,
    "num_experts": 2,
    "logit_scale": 3.0,
    "final_logit_softcapping": 3.0,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32},
}


@pytest.mark.filterwarnings("ignore:config.json")
def test_keys_that_are_ignored_here_change_nothing_in_transformers(tmp_path):
    config = dataclasses.replace(
        variant("GQA", "untied", "unscaled", ""), rope_scaling=RopeScaling(2.0, rope_type="linear")
    )
    reference(config).save_pretrained(tmp_path)
    with torch.no_grad():
        before = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(torch.tensor(TOKENS))
    file = tmp_path / "config.json"
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "rope_parameters"}
    file.write_text(json.dumps({**settings, "rope_theta": config.rope_theta, **IGNORED}))
    with torch.no_grad():
        after = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(torch.tensor(TOKENS))
    assert torch.equal(before.logits, after.logits)
    assert Llama.from_pretrained(tmp_path).config == config


REFUSED = {
    "sliding_window": 4,
    "attention_chunk_size": 4,
    "layer_types": ["full_attention", "sliding_attention"],
    "kv_sharing_modes": ["reuse", "none"],
    "per_layer_config": {"0": {"num_attention_heads": 2}},
    "transformers_weights": "other.safetensors",
    "text_config": {},
    "decoder": {},
    "generator": {},
    "is_causal": False,
    "is_encoder_decoder": True,
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("name", REFUSED)
def test_keys_that_are_refused_here_change_something_in_transformers(name, tmp_path):
    theirs = reference(variant("GQA", "untied", "factor8", ""))
    theirs.save_pretrained(tmp_path)
    prompt = torch.tensor(TOKENS[:, :37])
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    before = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: REFUSED[name]}))
    try:
        other = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        after = other.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        assert not torch.equal(after, before)
    except (ValueError, AttributeError, NotImplementedError, RuntimeError, OSError):
        pass  # it does not take such a Llama either
    with pytest.raises(ConfigError, match=name):
        Llama.from_pretrained(tmp_path)


def test_every_field_that_transformers_declares_for_a_llama_is_known_here():
    declared = {field.name for field in dataclasses.fields(transformers.LlamaConfig)}
    assert declared <= {*config_json._HUGGINGFACE}
    assert {*config_json._REFUSED} <= REFUSED.keys()


def test_every_other_point_is_what_passes_through_transformers_modules(tmp_path):
    torch_model = reference(variant("GQA", "untied", "factor8", "own_head_dim"))
    torch_model.save_pretrained(tmp_path)
    seen = {}

    def keep(name, which):
        def hook(module, args, kwargs, output):
            value = output if which == "output" else (args or tuple(kwargs.values()))[0]
            seen[name] = (value[0] if isinstance(value, tuple) else value).numpy()

        return hook

    layer = torch_model.model.layers[1]
    hooked = {
        "resid_pre": (layer, "input"),
        "input_layernorm.out": (layer.input_layernorm, "output"),
        "self_attn.q": (layer.self_attn.q_proj, "output"),
        "self_attn.k": (layer.self_attn.k_proj, "output"),
        "self_attn.v": (layer.self_attn.v_proj, "output"),
        "self_attn.z": (layer.self_attn.o_proj, "input"),
        "self_attn.out": (layer.self_attn, "output"),
        "resid_mid": (layer.post_attention_layernorm, "input"),
        "post_attention_layernorm.out": (layer.post_attention_layernorm, "output"),
        "mlp.gate": (layer.mlp.gate_proj, "output"),
        "mlp.up": (layer.mlp.up_proj, "output"),
        "mlp.act": (layer.mlp.down_proj, "input"),
        "mlp.out": (layer.mlp, "output"),
        "resid_post": (layer, "output"),
    }
    for name, (module, which) in hooked.items():
        module.register_forward_hook(keep(name, which), with_kwargs=True)
    with torch.no_grad():
        torch_model(torch.tensor(TOKENS))
    ours = Llama.from_pretrained(tmp_path).run(TOKENS, capture="layers.1.*")
    for name in hooked:
        got = np.asarray(ours[f"layers.1.{name}"]).reshape(seen[name].shape)
        np.testing.assert_allclose(got, seen[name], rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("tying", ["tied", "untied"])
def test_a_checkpoint_survives_the_way_to_ours_and_back_bit_for_bit(tying, tmp_path):
    theirs = reference(variant("GQA", tying, "factor32", ""))
    theirs.save_pretrained(tmp_path / "theirs")
    Llama.from_pretrained(tmp_path / "theirs").save(tmp_path / "ours")
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert LlamaConfig.from_huggingface(back.config.to_dict()) == variant(
        "GQA", tying, "factor32", ""
    )


@pytest.mark.parametrize("preset", ["llama-3-8b", "llama-3.1-8b", "llama-3.1-405b", "llama-3.2-1b"])
def test_inverse_frequencies_of_the_presets_are_bit_equal(preset):
    config = LlamaConfig.preset(preset)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**config.to_huggingface()))
    np.testing.assert_array_equal(inverse_frequencies(config), theirs.inv_freq.numpy())


@pytest.mark.parametrize(("heads", "tying", "scaling", "head_dim"), VARIANTS[:6])
def test_inverse_frequencies_of_the_variants_are_bit_equal(heads, tying, scaling, head_dim):
    config = variant(heads, tying, scaling, head_dim)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**config.to_huggingface()))
    np.testing.assert_array_equal(inverse_frequencies(config), theirs.inv_freq.numpy())


@pytest.mark.parametrize("preset", ["llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b"])
def test_rotary_tables_are_right_up_to_position_131071(preset):
    config = LlamaConfig.preset(preset)
    positions = np.array([[0, 1, 17, 8191, 8192, 65537, 131070, 131071]])
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**config.to_huggingface()))
    expected = theirs(torch.zeros(1, dtype=torch.float32), torch.tensor(positions))
    half = config.head_dim // 2
    for ours, reference_table in zip(
        rotary_tables(config, jnp.asarray(positions)), expected, strict=True
    ):
        # One unit in the last place of a cosine.
        np.testing.assert_allclose(ours, reference_table[..., :half].numpy(), rtol=0, atol=1.2e-7)


def test_greedy_generation_is_transformers(tmp_path):
    torch_model = reference(variant("GQA", "untied", "factor8", ""))
    torch_model.save_pretrained(tmp_path)
    prompts = torch.tensor(TOKENS[:, :37])
    theirs = torch_model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = Llama.from_pretrained(tmp_path)
    ours.stop_tokens = ()
    written = ours.generate(TOKENS[:, :37], max_new_tokens=40, temperature=0)
    np.testing.assert_array_equal(written.tokens, theirs[:, 37:].numpy())
