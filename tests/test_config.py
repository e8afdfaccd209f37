import dataclasses
import warnings

import pytest

from llama_jax import Llama
from llama_jax.config import PRESETS, ConfigError, LlamaConfig, RopeScaling

HUB_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_parameter_counts_are_those_of_the_published_models():
    assert {name: config.parameter_count for name, config in PRESETS.items()} == {
        "llama-3-8b": 8_030_261_248,
        "llama-3-70b": 70_553_706_496,
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "llama-3.1-405b": 405_853_388_800,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.2-3b": 3_212_749_824,
        "llama-3.3-70b": 70_553_706_496,
    }


def test_rope_scaling_follows_the_generation():
    factors = {n: c.rope_scaling.factor if c.rope_scaling else None for n, c in PRESETS.items()}
    assert factors == {
        "llama-3-8b": None,
        "llama-3-70b": None,
        "llama-3.1-8b": 8.0,
        "llama-3.1-70b": 8.0,
        "llama-3.1-405b": 8.0,
        "llama-3.2-1b": 32.0,
        "llama-3.2-3b": 32.0,
        "llama-3.3-70b": 8.0,
    }


def test_the_hub_s_file_of_a_preset_reads_as_the_preset():
    assert LlamaConfig.from_huggingface(HUB_3_2_1B) == LlamaConfig.preset("llama-3.2-1b")


def test_rope_parameters_of_transformers_5_read_as_the_older_keys():
    new = {k: v for k, v in HUB_3_2_1B.items() if k not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = HUB_3_2_1B["rope_scaling"] | {"rope_theta": 500000.0}
    assert LlamaConfig.from_huggingface(new) == LlamaConfig.preset("llama-3.2-1b")


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_the_way_to_huggingface_and_back(name):
    config = LlamaConfig.preset(name)
    assert LlamaConfig.from_huggingface(config.to_huggingface()) == config


def test_an_absent_head_dim_is_hidden_size_over_heads():
    given = {k: v for k, v in HUB_3_2_1B.items() if k != "head_dim"}
    assert LlamaConfig.from_huggingface(given).head_dim == 64


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_act", "gelu"),
        ("model_type", "mistral"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("num_attention_heads", 0),
        ("num_attention_heads", "32"),
        ("rope_scaling", "llama3"),
        ("attention_dropout", 0.1),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "fbgemm_fp8"}),
        ("attention_chunk_size", 8192),
        ("layer_types", ["full_attention"] * 15 + ["sliding_attention"]),
        ("layer_types", ["full_attention"] * 3),
        ("text_config", {"hidden_size": 8}),
        ("original_max_position_embeddings", 4096),
        ("is_causal", False),
    ],
)
def test_a_setting_that_is_not_honoured_is_an_error_that_names_it(setting, value):
    with pytest.raises(ConfigError, match=setting):
        LlamaConfig.from_huggingface(HUB_3_2_1B | {setting: value})


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 8.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "linear"},
        {"full_attention": {"rope_type": "default"}},
        HUB_3_2_1B["rope_scaling"] | {"attention_factor": 1.2},
        {"rope_type": "llama3", "factor": 8.0},
    ],
)
def test_a_rope_scaling_that_is_not_honoured_is_an_error(scaling):
    with pytest.raises(ConfigError, match="rope_scaling"):
        LlamaConfig.from_huggingface(HUB_3_2_1B | {"rope_scaling": scaling})


def rejected(change, says):
    with pytest.raises(ConfigError, match=says):
        LlamaConfig.from_huggingface(HUB_3_2_1B | change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unsloth_fixed", True),
        ("unsloth_version", "2025.1.5"),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}),
        ("keys_to_ignore_at_inference", ["past_key_values"]),
        ("pretraining_tp", 2),
        ("some_new_setting", 1),
    ],
)
def test_a_key_that_transformers_ignores_is_ignored_and_named_in_one_warning(name, value):
    with pytest.warns(UserWarning, match=f"config.json: {name}: ignored") as said:
        config = LlamaConfig.from_huggingface(HUB_3_2_1B | {name: value})
    assert config == LlamaConfig.preset("llama-3.2-1b") and len(said) == 1


def test_what_every_file_has_is_ignored_without_a_word():
    usual = {
        "_name_or_path": "mine",
        "layer_types": ["full_attention"] * 16,
        "pruned_heads": {},
        "is_decoder": False,
        "sliding_window": None,
        "pad_token_id": -1,
        "temperature": 1,
        "a_null": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlamaConfig.from_huggingface(HUB_3_2_1B | usual)


def test_biases_and_linear_scaling_are_read_and_written():
    linear = {"type": "linear", "factor": 4.0}
    config = LlamaConfig.from_huggingface(
        HUB_3_2_1B | {"attention_bias": True, "mlp_bias": True, "rope_scaling": linear}
    )
    assert config.attention_bias and config.mlp_bias
    assert config.rope_scaling == RopeScaling(4.0, rope_type="linear")
    written = config.to_huggingface()
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert LlamaConfig.from_huggingface(written) == config
    with pytest.raises(ConfigError, match=r"params.json cannot say attention_bias and mlp_bias"):
        config.to_meta()


def test_biases_count_as_parameters():
    config = LlamaConfig.preset("llama-3.2-1b")
    biased = dataclasses.replace(config, attention_bias=True, mlp_bias=True)
    a_layer = (2048 + 512 + 512 + 2048) + (8192 + 8192 + 2048)
    assert biased.parameter_count == config.parameter_count + 16 * a_layer


def test_a_key_that_a_kind_of_scaling_does_not_read_is_named_in_a_warning():
    linear = {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 2048}
    with pytest.warns(UserWarning, match=r"rope_scaling.original_max_position_embeddings: ignored"):
        config = LlamaConfig.from_huggingface(HUB_3_2_1B | {"rope_scaling": linear})
    assert config.rope_scaling == RopeScaling(2.0, rope_type="linear")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_quantized_checkpoint_is_named_as_what_it_is(method):
    name = {"gptq": "GPTQ", "awq": "AWQ"}.get(method, method)
    says = f"quantized by {name} to 4 bits, which is not read. Open the checkpoint"
    rejected({"quantization_config": {"quant_method": method, "bits": 4}}, says)


WRONG = {
    "vocab_size": ["128256", 128256.0, True, 0, -1, 2**31],
    "num_hidden_layers": [[16], {}],
    "rms_norm_eps": [{}, "1e-5", [1e-5], True, 0, float("nan"), float("inf"), 10**400],
    "rope_theta": [[1], "500000", {}, -1.0],
    "tie_word_embeddings": ["false", 0, 1, []],
    "attention_bias": ["false", 1],
    "mlp_bias": ["true", 0],
    "eos_token_id": ["1793", [1793.5], ["<|eot_id|>"], True, -1, {}, [[1]]],
    "architectures": ["LlamaForCausalLM", [3]],
    "hidden_act": [1],
    "torch_dtype": [16],
    "use_cache": ["yes"],
    "temperature": ["0.6"],
    "rope_scaling": ["llama3", [8], 8],
    "layer_types": ["full_attention", [1]],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_field_of_the_wrong_type_is_an_error_that_names_it(name, value):
    rejected({name: value}, rf"config.json: {name} is .*; it must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", "8"),
        ("factor", float("inf")),
        ("low_freq_factor", [1]),
        ("original_max_position_embeddings", 256.7),
        ("rope_type", {}),
        ("rope_theta", "500000"),
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_so_is_a_field_of_the_rotary_scaling(key, name, value):
    scaling = HUB_3_2_1B["rope_scaling"] | {name: value}
    rejected({key: scaling}, rf"config.json: {key}\.{name} is .*; it must be ")


def test_a_base_that_the_scaling_itself_names_counts_and_must_agree():
    scaling = HUB_3_2_1B["rope_scaling"] | {"rope_theta": 1000.0}
    rejected({"rope_scaling": scaling}, r"rope_theta = 500000.0 and rope_scaling.rope_theta = 1000")
    alone = {k: v for k, v in HUB_3_2_1B.items() if k != "rope_theta"}
    assert LlamaConfig.from_huggingface(alone | {"rope_scaling": scaling}).rope_theta == 1000


@pytest.mark.parametrize("field", ["factor", "original_max_position_embeddings", "rope_type"])
def test_a_scaling_made_by_hand_is_checked_too(field):
    with pytest.raises(ConfigError, match=rf"rope_scaling\.{field} is '8'; it must be"):
        RopeScaling(**{"factor": 8.0, field: "8"})


def test_linear_scaling_has_a_factor_alone():
    with pytest.raises(ConfigError, match="'linear' has a factor and nothing else"):
        RopeScaling(2.0, 3.0, 4.0, rope_type="linear")


def test_two_rope_settings_that_disagree_are_an_error():
    other = {"rope_type": "default", "rope_theta": 500000.0}
    with pytest.raises(ConfigError, match="disagree"):
        LlamaConfig.from_huggingface(HUB_3_2_1B | {"rope_parameters": other})


def test_a_lacking_size_is_an_error_that_names_it():
    given = {k: v for k, v in HUB_3_2_1B.items() if k != "hidden_size"}
    with pytest.raises(ConfigError, match="hidden_size"):
        LlamaConfig.from_huggingface(given)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_key_value_heads": 7}, "num_key_value_heads"),
        ({"head_dim": 63}, "head_dim"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_theta": None}, "rope_theta"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"rope_scaling": {"factor": 8.0}}, "rope_scaling"),
    ],
)
def test_sizes_that_contradict_each_other_are_errors(change, word):
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(LlamaConfig.preset("llama-3.2-1b"), **change)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"mean 'llama-3.1-8b'.*llama-3.3-70b"):
        LlamaConfig.preset("llama-3.1-8B-instruct")


def test_a_preset_is_named_in_text():
    with pytest.raises(TypeError, match="name is a int; a preset is named in text"):
        LlamaConfig.preset(8)


@pytest.mark.parametrize("make", [Llama.random, Llama.abstract])
def test_a_llama_is_made_of_a_config(make):
    with pytest.raises(TypeError, match="config is a dict; it must be a preset's name or a Llama"):
        make(HUB_3_2_1B)


def test_scaling_factors_are_checked():
    with pytest.raises(ConfigError, match="high_freq_factor"):
        RopeScaling(factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0)


META = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize(
    ("preset", "params"),
    [
        ("llama-3-8b", {}),
        ("llama-3.1-8b", {"use_scaled_rope": True}),
        ("llama-3-70b", {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}),
        (
            "llama-3.1-405b",
            {"dim": 16384, "n_layers": 126, "n_heads": 128, "ffn_dim_multiplier": 1.2}
            | {"multiple_of": 4096, "use_scaled_rope": True},
        ),
        (
            "llama-3.2-1b",
            {"dim": 2048, "n_layers": 16, "ffn_dim_multiplier": 1.5, "multiple_of": 256}
            | {"use_scaled_rope": True},
        ),
        (
            "llama-3.2-3b",
            {"dim": 3072, "n_layers": 28, "n_heads": 24, "ffn_dim_multiplier": 1.0}
            | {"multiple_of": 256, "use_scaled_rope": True},
        ),
    ],
)
def test_params_json_of_every_size_is_its_preset_and_is_written_back(preset, params):
    config = LlamaConfig.from_meta({**META, **params})
    assert config == LlamaConfig.preset(preset)
    assert LlamaConfig.from_meta(config.to_meta()) == config
    ours, theirs = config.to_meta(), {**META, **params}
    for name in theirs.keys() - {"multiple_of", "ffn_dim_multiplier"}:  # many give the same size
        assert ours[name] == theirs[name]


def test_what_params_json_cannot_say_an_argument_says():
    params = {**META, "use_scaled_rope": True}
    config = LlamaConfig.from_meta(params, rope_scaling_factor=32.0, tie_word_embeddings=True)
    assert config.rope_scaling.factor == 32 and config.tie_word_embeddings


@pytest.mark.parametrize("size", [7, 48, 1000, 14336, 14337])
def test_any_feed_forward_size_can_be_written(size):
    config = dataclasses.replace(LlamaConfig.preset("llama-3.1-8b"), intermediate_size=size)
    assert LlamaConfig.from_meta(config.to_meta()).intermediate_size == size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_args": {"scheme": "int4"}}, "params.json has quantization_args"),
        ({"n_heads": 33}, r"dim \(4096\) is not a multiple of n_heads \(33\)"),
        ({"dim": None}, r"params.json lacks dim\."),
        ({"n_layers": "many"}, "n_layers is 'many'; it must be a positive integer"),
        ({"n_layers": None, "dim": 4096.0}, "params.json: dim is 4096.0; it must be"),
        ({"norm_eps": "1e-5"}, "params.json: norm_eps is '1e-5'; it must be"),
        ({"rope_theta": [1]}, r"params.json: rope_theta is \[1\]; it must be"),
        ({"use_scaled_rope": "false"}, "params.json: use_scaled_rope is 'false'; it must be"),
        ({"multiple_of": 0}, "params.json: multiple_of is 0; it must be"),
        ({"ffn_dim_multiplier": {}}, "params.json: ffn_dim_multiplier is {}; it must be"),
        ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier is 1e[+]308; that is too large"),
        ({"max_batch_size": "1"}, "params.json: max_batch_size is '1'; it must be"),
        ({"n_kv_heads": 5}, "not a multiple of num_key_value_heads"),
    ],
)
def test_a_params_json_that_is_not_honoured_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        LlamaConfig.from_meta({**META, **change})


def test_a_head_size_of_its_own_cannot_be_written_for_meta():
    config = dataclasses.replace(LlamaConfig.preset("llama-3.1-8b"), head_dim=64)
    with pytest.raises(ConfigError, match=r"params.json cannot say head_dim 64"):
        config.to_meta()
