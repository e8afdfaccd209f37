"""`LlamaConfig` from and to Hugging Face's `config.json` and Meta's `params.json`.

Every known field has a row in a table that says what it may hold. Of `config.json` a field is
computed, or has the one value that is computed, or is ignored because transformers'
`LlamaForCausalLM` ignores it too.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from llama_jax.base.fields import (
    FLAG,
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXTS,
    TOKENS,
    Kind,
    shown,
    wrong_fields,
)
from llama_jax.config import ConfigError, LlamaConfig, RopeScaling

__all__ = [
    "check_generation",
    "from_huggingface",
    "from_meta",
    "to_huggingface",
    "to_meta",
]

# Hugging Face

_COMPUTED: dict[str, Kind] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "rms_norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "tie_word_embeddings": FLAG,
    "max_position_embeddings": SIZE,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "original_max_position_embeddings": SIZE,
    "layer_types": TEXTS,
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

# What matters to transformers' Llama, and the values that are computed here.
_FIXED: dict[str, tuple[Kind, tuple[Any, ...]]] = {
    "model_type": (TEXT, ("llama",)),
    "architectures": (TEXTS, (["LlamaForCausalLM"],)),
    "hidden_act": (TEXT, ("silu", "swish")),
    "attention_dropout": (NUMBER, (0,)),
    "partial_rotary_factor": (NUMBER, (1,)),
    "is_encoder_decoder": (FLAG, (False,)),
    "is_causal": (FLAG, (True,)),
}
# What matters to it too, and has no value that is computed here: a cache of some positions or
# layers, weights under other names, a model inside another one.
_REFUSED = (
    *("sliding_window", "attention_chunk_size", "kv_sharing_modes", "per_layer_config"),
    *("transformers_weights", "text_config", "decoder", "generator"),
)

# How text is written; both config.json and generation_config.json may say it. Only the end tokens
# are read.
_GENERATION: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("bos_token_id", "decoder_start_token_id", "eos_token_id"),
            *("forced_bos_token_id", "forced_eos_token_id"),
        ),
        TOKENS,
    ),
    "pad_token_id": Kind("an integer, or a list of them", lambda value: _integers(value)),
    **dict.fromkeys(
        (
            *("_from_model_config", "disable_compile", "do_sample", "is_assistant", "low_memory"),
            *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
            *("remove_invalid_values", "renormalize_logits", "return_dict_in_generate"),
            *("token_healing", "use_cache"),
        ),
        FLAG,
    ),
    **dict.fromkeys(
        (
            *("assistant_early_exit", "assistant_lookbehind", "encoder_no_repeat_ngram_size"),
            *("max_length", "max_matching_ngram_size", "max_new_tokens", "min_length"),
            *("min_new_tokens", "no_repeat_ngram_size", "num_assistant_tokens", "num_beam_groups"),
            *("num_beams", "num_return_sequences", "prefill_chunk_size"),
            *("prompt_lookup_num_tokens", "target_lookbehind", "top_k"),
        ),
        INTEGER,
    ),
    **dict.fromkeys(
        (
            *("assistant_confidence_threshold", "diversity_penalty", "encoder_repetition_penalty"),
            *("epsilon_cutoff", "eta_cutoff", "guidance_scale", "length_penalty", "max_time"),
            *("min_p", "penalty_alpha", "repetition_penalty", "temperature", "top_h", "top_p"),
            "typical_p",
        ),
        NUMBER,
    ),
    **dict.fromkeys(
        (
            *("bad_words_ids", "begin_suppress_tokens", "constraints"),
            *("exponential_decay_length_penalty", "force_words_ids", "suppress_tokens"),
        ),
        LIST,
    ),
    **dict.fromkeys(
        ("cache_implementation", "num_assistant_tokens_schedule", "transformers_version"), TEXT
    ),
    **dict.fromkeys(("cache_config", "compile_config", "watermarking_config"), OBJECT),
    "early_stopping": Kind(
        "true, false or 'never'", lambda value: value == "never" or FLAG.accepts(value)
    ),
}
# Ignored without a word: how a model was saved, made or trained, in very many files.
_BOOKKEEPING: dict[str, Kind] = {
    "_attn_implementation": TEXT,
    "_commit_hash": TEXT,
    "_name_or_path": TEXT,
    "attn_implementation": TEXT,
    "dtype": TEXT,
    "finetuning_task": TEXT,
    "id2label": OBJECT,
    "initializer_range": NUMBER,
    "label2id": OBJECT,
    "prefix": TEXT,
    "problem_type": TEXT,
    "return_dict": FLAG,
    "sep_token_id": INTEGER,
    "task_specific_params": OBJECT,
    "tokenizer_class": TEXT,
    "torch_dtype": TEXT,
    "torchscript": FLAG,
    "transformers.js_config": OBJECT,
    "use_bfloat16": FLAG,
}
# Ignored, and without a word where they hold what older transformers wrote into every file.
_DEFAULTS: dict[str, tuple[Kind, Any]] = {
    "add_cross_attention": (FLAG, False),
    "chunk_size_feed_forward": (INTEGER, 0),
    "cross_attention_hidden_size": (INTEGER, None),
    "is_decoder": (FLAG, False),
    "pretraining_tp": (INTEGER, 1),
    "pruned_heads": (OBJECT, {}),
    "tie_encoder_decoder": (FLAG, False),
}
_HUGGINGFACE: dict[str, Kind] = {
    **_COMPUTED,
    **_GENERATION,
    **_BOOKKEEPING,
    **{name: kind for name, (kind, _) in (*_FIXED.items(), *_DEFAULTS.items())},
}


def from_huggingface(config: Mapping[str, Any]) -> LlamaConfig:
    """See `LlamaConfig.from_huggingface`."""
    config = _settings(config)
    _raise(wrong_fields(config, _HUGGINGFACE, "config.json: "))
    _check_quantization(config)
    _check_fixed(config)
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}.")
    heads = config["num_attention_heads"]
    if config.get("head_dim") is None and config["hidden_size"] % heads:
        raise ConfigError(
            f"hidden_size ({config['hidden_size']}) is not a multiple of num_attention_heads "
            f"({heads}), and config.json gives no head_dim."
        )
    theta, scaling, unused = _read_rope(config)
    made = LlamaConfig(
        **{name: config[name] for name in _REQUIRED},
        num_key_value_heads=_given(config, "num_key_value_heads", heads),
        head_dim=_given(config, "head_dim", config["hidden_size"] // heads),
        rms_norm_eps=float(_given(config, "rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=_given(config, "tie_word_embeddings", False),
        max_position_embeddings=_given(config, "max_position_embeddings", 2048),
        attention_bias=_given(config, "attention_bias", False),
        mlp_bias=_given(config, "mlp_bias", False),
    )
    ignored = [shown(name)[1:-1] for name, value in config.items() if _is_surplus(name, value)]
    ignored += unused
    if ignored:
        more = f" and {len(ignored) - 20} more" if len(ignored) > 20 else ""
        warnings.warn(
            f"config.json: {', '.join(ignored[:20])}{more}: ignored, as transformers' Llama does.",
            stacklevel=3,
        )
    return made


def _check_fixed(config: Mapping[str, Any]) -> None:
    given = {name: value for name, value in config.items() if value is not None}
    for name, (_, computed) in _FIXED.items():
        if name in given and given[name] not in computed:
            raise ConfigError(
                f"config.json has {name} = {shown(given[name])}; what is computed is "
                f"{computed[0]!r}."
            )
    for name in _REFUSED:
        if name in given:
            raise ConfigError(
                f"config.json has {name} = {shown(given[name])}, which changes what is computed "
                "and is not done here."
            )
    types, layers = given.get("layer_types", []), given.get("num_hidden_layers")
    other = sorted(set(types) - {"full_attention", "attention"})
    if other or (types and len(types) != layers):
        raise ConfigError(
            f"config.json has layer_types with {len(types)} entries"
            + (f", of which some are {shown(other[0])}" if other else "")
            + f"; what is computed is 'full_attention' in each of {layers} layers."
        )


def _is_surplus(name: Any, value: Any) -> bool:
    """Whether it is a setting that is not read, and more than what every file has."""
    if name in _DEFAULTS:
        value = None if value == _DEFAULTS[name][1] else value
    elif name in _HUGGINGFACE:
        return False
    return value is not None


def to_huggingface(config: LlamaConfig) -> dict[str, Any]:
    """See `LlamaConfig.to_huggingface`."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    scaling = config.rope_scaling
    if scaling is not None:
        kept = {name: getattr(scaling, name) for name in _SCALINGS[scaling.rope_type]}
        fields["rope_scaling"] = {"rope_type": scaling.rope_type, **kept}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **fields,
    }


def check_generation(file: str, settings: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a field of the wrong type among those that say how text is written.

    >>> check_generation("generation_config.json", {"eos_token_id": [128001.5]})
    Traceback (most recent call last):
    llama_jax.config.ConfigError: generation_config.json: eos_token_id is [128001.5]; it must be ...
    """
    _raise(wrong_fields(settings, _GENERATION, f"{file}: "))


# By quant_method, who made such files; what can be done is the same for all but one.
_QUANTIZERS = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors (llm-compressor)",
    "fbgemm_fp8": "FBGEMM's FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
}


def _check_quantization(config: Mapping[str, Any]) -> None:
    said = config.get("quantization_config")
    if said is None:
        return
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method is None and isinstance(said, dict) and {"load_in_4bit", "load_in_8bit"} & set(said):
        method = "bitsandbytes"  # of before 2023
    name = _QUANTIZERS.get(method, method) if isinstance(method, str) else "an unnamed method"
    bits = said.get("bits") if isinstance(said, dict) else None
    raise ConfigError(
        f"config.json has quantization_config: the weights are quantized by {shown(name)[1:-1]}"
        f"{f' to {shown(bits)} bits' if bits is not None else ''}, which is not read. Open the "
        "checkpoint that they were made from"
        + (
            ", or write it out with transformers: AutoModelForCausalLM.from_pretrained(path)"
            ".dequantize().save_pretrained(folder)."
            if method == "bitsandbytes"
            else "; the model's page names it."
        )
    )


# What is read of each kind of scaling; transformers reads these too, and no more.
_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_ROPE: dict[str, Kind] = {
    "rope_type": TEXT,
    "type": TEXT,
    "rope_theta": POSITIVE,
    "partial_rotary_factor": NUMBER,
    "attention_factor": NUMBER,
    "factor": POSITIVE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": SIZE,
}


_ROPE_UNITS = ("partial_rotary_factor", "attention_factor")  # 1 is no change; no other is computed


def _read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None, list[str]]:
    """`(theta, scaling, keys not used)` from either generation of the file, which must agree."""
    thetas = {"rope_theta": config.get("rope_theta")}
    scalings: dict[str, RopeScaling | None] = {}
    unused: list[str] = []
    for where in ("rope_scaling", "rope_parameters"):
        given = config.get(where)
        if not given:  # an empty object says nothing, as null does
            continue
        _raise(wrong_fields(given, _ROPE, f"config.json: {where}."))
        thetas[f"{where}.rope_theta"] = given.get("rope_theta")
        scalings[where], ignored = _read_scaling(where, given)
        unused += [f"{where}.{name}" for name in ignored]
    said = {name: float(value) for name, value in thetas.items() if value is not None}
    if len(set(said.values())) > 1:
        raise ConfigError(
            f"config.json has {' and '.join(f'{name} = {v}' for name, v in said.items())}: which "
            "one is right?"
        )
    if len({*scalings.values()}) > 1:
        raise ConfigError("config.json has rope_scaling and rope_parameters, and they disagree.")
    scaling = next(iter(scalings.values()), None)
    before = config.get("original_max_position_embeddings")
    if scaling is None or scaling.rope_type != "llama3":
        unused += ["original_max_position_embeddings"] if before is not None else []
    elif before not in (None, scaling.original_max_position_embeddings):
        raise ConfigError(
            f"config.json has original_max_position_embeddings = {before} and, for the rotary "
            f"scaling, {scaling.original_max_position_embeddings}: which one is right?"
        )
    return next(iter(said.values()), 10000.0), scaling, unused


def _read_scaling(where: str, given: Mapping[str, Any]) -> tuple[RopeScaling | None, list[str]]:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _SCALINGS:
        raise ConfigError(
            f"config.json has {where}.rope_type = {shown(kind)}; what is computed is 'llama3', "
            "'linear' and 'default' (no scaling)."
        )
    read = _SCALINGS[kind]
    values = {name: value for name, value in given.items() if value is not None}
    surplus = values.keys() - {*read, "rope_type", "type", "rope_theta"}
    for name in sorted(surplus):
        # Of an object, which is the scaling of some layers, nothing may be lost.
        other = values[name] != 1 if name in _ROPE_UNITS else isinstance(values[name], dict)
        if other:
            raise ConfigError(
                f"config.json has {where}.{name} = {shown(values[name])} (rope_type {kind!r}), a "
                "setting that this model does not honour."
            )
    missing = [name for name in read if name not in values]
    if missing:
        raise ConfigError(f"config.json: {where} of type {kind!r} lacks {', '.join(missing)}.")
    unused = sorted(surplus - set(_ROPE_UNITS))
    if kind == "default":
        return None, unused
    numbers: dict[str, Any] = {
        name: values[name] if _ROPE[name] is SIZE else float(values[name]) for name in read
    }
    return RopeScaling(**numbers, rope_type=kind), unused  # type: ignore[arg-type]


# Meta

# What `params.json` may hold; the last three size Meta's own runtime.
_META: dict[str, Kind] = {
    "dim": SIZE,
    "n_layers": SIZE,
    "n_heads": SIZE,
    "n_kv_heads": SIZE,
    "vocab_size": SIZE,
    "multiple_of": SIZE,
    "ffn_dim_multiplier": POSITIVE,
    "norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "use_scaled_rope": FLAG,
    "max_batch_size": INTEGER,
    "max_seq_len": INTEGER,
    "model_parallel_size": INTEGER,
}
_META_3_2 = {(2048, 16), (3072, 28)}  # (dim, n_layers) of Llama 3.2 1B and 3B


def from_meta(
    params: Mapping[str, Any],
    tie_word_embeddings: bool | None = None,
    rope_scaling_factor: float | None = None,
) -> LlamaConfig:
    """See `LlamaConfig.from_meta`."""
    params = _settings(params)
    for name, value in params.items():
        if name not in _META and value is not None:
            raise ConfigError(
                f"params.json has {name} = {shown(value)}, a setting that this model does not "
                "honour. If it does not change the forward pass, remove it."
            )
    _raise(wrong_fields(params, _META, "params.json: "))
    missing = [n for n in ("dim", "n_layers", "n_heads", "vocab_size") if params.get(n) is None]
    if missing:
        raise ConfigError(f"params.json lacks {', '.join(missing)}.")
    dim, heads, layers = (params[name] for name in ("dim", "n_heads", "n_layers"))
    if dim % heads:
        raise ConfigError(f"dim ({dim}) is not a multiple of n_heads ({heads}).")
    scaled = bool(params.get("use_scaled_rope"))
    is_3_2 = (dim, layers) in _META_3_2 and scaled
    factor = (32.0 if is_3_2 else 8.0) if rope_scaling_factor is None else rope_scaling_factor
    scaling = RopeScaling(factor=factor) if scaled else None
    multiplier = params.get("ffn_dim_multiplier")
    if multiplier is not None and multiplier * dim > 2**31:
        raise ConfigError(
            f"params.json: ffn_dim_multiplier is {shown(multiplier)}; that is too large."
        )
    return LlamaConfig(
        vocab_size=params["vocab_size"],
        hidden_size=dim,
        intermediate_size=_meta_ffn(dim, _given(params, "multiple_of", 256), multiplier),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_given(params, "n_kv_heads", heads),
        head_dim=dim // heads,
        rms_norm_eps=float(_given(params, "norm_eps", 1e-5)),
        rope_theta=float(_given(params, "rope_theta", 500000.0)),
        rope_scaling=scaling,
        tie_word_embeddings=is_3_2 if tie_word_embeddings is None else tie_word_embeddings,
        max_position_embeddings=8192 if scaling is None else 131072,
    )


def to_meta(config: LlamaConfig) -> dict[str, Any]:
    """See `LlamaConfig.to_meta`."""
    biases = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name)]
    if biases:
        raise ConfigError(
            f"params.json cannot say {' and '.join(biases)}: Meta's Llama has no biases. Save in "
            "Hugging Face's format."
        )
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise ConfigError(
            f"params.json cannot say head_dim {config.head_dim}: it is hidden_size / "
            f"num_attention_heads, {config.hidden_size} / {config.num_attention_heads}."
        )
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        **_meta_ffn_rule(config.hidden_size, config.intermediate_size),
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }
    again = from_meta(params)
    if again.rope_scaling != config.rope_scaling:
        raise ConfigError(
            f"params.json cannot say {config.rope_scaling}: readers of it take "
            f"{again.rope_scaling} for these dimensions."
        )
    return params


def _meta_ffn(dim: int, multiple_of: int, multiplier: float | None) -> int:
    size = int(2 * (4 * dim) / 3)
    size = size if multiplier is None else int(multiplier * size)
    return multiple_of * -(-size // multiple_of)


def _meta_ffn_rule(dim: int, size: int) -> dict[str, Any]:
    """`multiple_of` and `ffn_dim_multiplier` that give this size: Meta's own, where they do."""
    for multiplier in (1.3, 1.5, 1.2, 1.0):
        for multiple_of in (1024, 4096, 256):
            if _meta_ffn(dim, multiple_of, multiplier) == size:
                return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    return {"multiple_of": 1, "ffn_dim_multiplier": (size + 0.5) / int(2 * (4 * dim) / 3)}


# Both


def _settings(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"A config is settings by name, not a {type(given).__name__}.")
    return dict(given)


def _given(config: Mapping[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


def _integers(value: Any) -> bool:
    return all(map(INTEGER.accepts, value if isinstance(value, list) else [value]))


def _raise(wrong: str) -> None:
    if wrong:
        raise ConfigError(wrong)
