import dataclasses

import pytest

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
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("model_type", "mistral"),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("pretraining_tp", 2),
        ("num_attention_heads", 0),
        ("num_attention_heads", "32"),
        ("rope_scaling", "llama3"),
        ("attention_dropout", 0.1),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"quant_method": "fbgemm_fp8"}),
        ("some_new_setting", 1),
    ],
)
def test_a_setting_that_is_not_honoured_is_an_error_that_names_it(setting, value):
    with pytest.raises(ConfigError, match=setting):
        LlamaConfig.from_huggingface(HUB_3_2_1B | {setting: value})


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 8.0},
        {"type": "linear", "factor": 2.0},
        HUB_3_2_1B["rope_scaling"] | {"attention_factor": 1.2},
        {"rope_type": "llama3", "factor": 8.0},
    ],
)
def test_a_rope_scaling_that_is_not_honoured_is_an_error(scaling):
    with pytest.raises(ConfigError, match="rope_scaling"):
        LlamaConfig.from_huggingface(HUB_3_2_1B | {"rope_scaling": scaling})


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
    ],
)
def test_sizes_that_contradict_each_other_are_errors(change, word):
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(LlamaConfig.preset("llama-3.2-1b"), **change)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"mean 'llama-3.1-8b'.*llama-3.3-70b"):
        LlamaConfig.preset("llama-3.1-8B-instruct")


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
