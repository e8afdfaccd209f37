"""What a Llama is: its sizes and rotary frequencies. How it runs (dtype, mesh) is not here."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

__all__ = ["ConfigError", "LlamaConfig", "RopeScaling"]


class ConfigError(ValueError):
    """A configuration that is inconsistent, or that asks for something this model does not do."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of the rotary frequencies (`rope_type: "llama3"`).

    Wavelengths below `original_max_position_embeddings / high_freq_factor` stay, those above
    `original_max_position_embeddings / low_freq_factor` are multiplied by `factor`, those between
    are blended. Source: `apply_scaling` in Meta's reference, with the factor taken from the
    config (8 for 3.1 and 3.3, 32 for 3.2) where the reference hard-codes 8.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ConfigError(f"rope_scaling.factor is {self.factor}; it must be at least 1.")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: low_freq_factor ({self.low_freq_factor}) must be positive and "
                f"below high_freq_factor ({self.high_freq_factor})."
            )
        if not self.original_max_position_embeddings > 0:
            raise ConfigError(
                "rope_scaling.original_max_position_embeddings is "
                f"{self.original_max_position_embeddings}; it must be positive."
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture of a Llama 3, with Hugging Face's field names.

    Hashable, so that it can be a static argument of a compiled function. Raises `ConfigError`
    where the sizes contradict each other.

    >>> config = LlamaConfig.preset("llama-3.2-1b")
    >>> config.head_dim, config.rope_scaling.factor, config.parameter_count
    (64, 32.0, 1235814400)
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 131072

    def __post_init__(self) -> None:
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): the query heads cannot be "
                "shared out evenly."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even size.")
        for name in ("rms_norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be positive.")

    @classmethod
    def preset(cls, name: str) -> LlamaConfig:
        """One of Meta's sizes by name, e.g. `"llama-3.1-8b"`; an unknown name lists them all."""
        try:
            return PRESETS[name.lower()]
        except KeyError:
            near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"There is no preset {name!r}.{hint} The presets are: {', '.join(PRESETS)}."
            ) from None

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> LlamaConfig:
        """Reads the content of a Hugging Face `config.json`.

        Takes `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).
        Keys that are absent take the values that transformers would give them. A setting that
        this model does not honour raises `ConfigError` and is never ignored.
        """
        config = dict(config)
        _check_huggingface(config)
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}.")
        for name in _REQUIRED:
            _check_size(name, config[name])
        heads = config["num_attention_heads"]
        theta, scaling = _read_rope(config)
        if config.get("head_dim") is None and config["hidden_size"] % heads:
            raise ConfigError(
                f"hidden_size ({config['hidden_size']}) is not a multiple of num_attention_heads "
                f"({heads}), and config.json gives no head_dim."
            )
        return cls(
            **{name: config[name] for name in _REQUIRED},
            num_key_value_heads=_given(config, "num_key_value_heads", heads),
            head_dim=_given(config, "head_dim", config["hidden_size"] // heads),
            rms_norm_eps=float(_given(config, "rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=bool(_given(config, "tie_word_embeddings", False)),
            max_position_embeddings=_given(config, "max_position_embeddings", 2048),
        )

    @classmethod
    def from_meta(
        cls,
        params: dict[str, Any],
        *,
        tie_word_embeddings: bool | None = None,
        rope_scaling_factor: float | None = None,
    ) -> LlamaConfig:
        """Reads the content of Meta's `params.json`.

        The feed-forward size follows from `multiple_of` and `ffn_dim_multiplier`. The file does not
        say two things. The factor of the rotary scaling is 32 for Llama 3.2's dimensions and else
        8; whether the head is tied is likewise Llama 3.2's dimensions' to say, where the tensors
        are not at hand. The arguments overrule both. Raises `ConfigError` for a setting that this
        model does not honour.

        >>> config = LlamaConfig.from_meta({"dim": 4096, "n_layers": 32, "n_heads": 32,
        ...     "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3,
        ...     "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0,
        ...     "use_scaled_rope": True})
        >>> config == LlamaConfig.preset("llama-3.1-8b")
        True

        Source: `llama_models/llama3/model.py` and `sku_list.py`.
        """
        for name, value in params.items():
            if name not in _META and value is not None:
                raise ConfigError(
                    f"params.json has {name} = {value!r}, a setting that this model does not "
                    "honour. If it does not change the forward pass, remove it."
                )
        missing = [n for n in ("dim", "n_layers", "n_heads", "vocab_size") if not params.get(n)]
        if missing:
            raise ConfigError(f"params.json lacks {', '.join(missing)}.")
        dim, heads, layers = (params[name] for name in ("dim", "n_heads", "n_layers"))
        for name in ("dim", "n_heads", "n_layers"):
            _check_size(name, params[name])
        if dim % heads:
            raise ConfigError(f"dim ({dim}) is not a multiple of n_heads ({heads}).")
        is_3_2 = (dim, layers) in _META_3_2 and bool(params.get("use_scaled_rope"))
        scaling = None
        if params.get("use_scaled_rope"):
            scaling = RopeScaling(factor=rope_scaling_factor or (32.0 if is_3_2 else 8.0))
        return cls(
            vocab_size=params["vocab_size"],
            hidden_size=dim,
            intermediate_size=_meta_ffn(
                dim, _given(params, "multiple_of", 256), params.get("ffn_dim_multiplier")
            ),
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

    def to_meta(self) -> dict[str, Any]:
        """The content of a `params.json` that `llama-models` reads.

        Raises `ConfigError` for what it cannot say: another head size than dim / heads, or another
        rotary scaling than that of Llama 3.1 and 3.2.
        """
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            raise ConfigError(
                f"params.json cannot say head_dim {self.head_dim}: it is hidden_size / "
                f"num_attention_heads, {self.hidden_size} / {self.num_attention_heads}."
            )
        params = {
            "dim": self.hidden_size,
            "n_layers": self.num_hidden_layers,
            "n_heads": self.num_attention_heads,
            "n_kv_heads": self.num_key_value_heads,
            "vocab_size": self.vocab_size,
            **_meta_ffn_rule(self.hidden_size, self.intermediate_size),
            "norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "use_scaled_rope": self.rope_scaling is not None,
        }
        again = LlamaConfig.from_meta(params)
        if again.rope_scaling != self.rope_scaling:
            raise ConfigError(
                f"params.json cannot say {self.rope_scaling}: readers of it take "
                f"{again.rope_scaling} for these dimensions."
            )
        return params

    def to_huggingface(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 4.43 and later read."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.rope_scaling is not None:
            fields["rope_scaling"] = {
                "rope_type": "llama3",
                **dataclasses.asdict(self.rope_scaling),
            }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **fields,
        }

    @property
    def parameter_count(self) -> int:
        """How many numbers the model holds; a tied head counts once."""
        d, h = self.hidden_size, self.head_dim
        attention = d * h * (2 * self.num_attention_heads + 2 * self.num_key_value_heads)
        layer = attention + 3 * d * self.intermediate_size + 2 * d
        tables = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * layer + d


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_REQUIRED = _SIZES[:5]


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a positive integer.")


_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
)
_70B = dataclasses.replace(
    _8B, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
)
_8B_LONG = dataclasses.replace(
    _8B, rope_scaling=RopeScaling(factor=8.0), max_position_embeddings=131072
)
_70B_LONG = dataclasses.replace(
    _70B, rope_scaling=_8B_LONG.rope_scaling, max_position_embeddings=131072
)
_3B = dataclasses.replace(
    _8B_LONG,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    rope_scaling=RopeScaling(factor=32.0),
    tie_word_embeddings=True,
)

PRESETS: dict[str, LlamaConfig] = {
    "llama-3-8b": _8B,
    "llama-3-70b": _70B,
    "llama-3.1-8b": _8B_LONG,
    "llama-3.1-70b": _70B_LONG,
    "llama-3.1-405b": dataclasses.replace(
        _70B_LONG,
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
    ),
    "llama-3.2-1b": dataclasses.replace(
        _3B, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64
    ),
    "llama-3.2-3b": _3B,
    "llama-3.3-70b": _70B_LONG,
}

# Settings with one value that this model honours; any other value is an error.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"],),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, 0.0),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1, 1.0),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "tie_encoder_decoder": (False,),
}
# Settings that change nothing in the forward pass: how it was saved, initialized or decoded.
# fmt: off
_IRRELEVANT = frozenset(
    {
        "_attn_implementation", "_commit_hash", "_name_or_path", "attn_implementation",
        "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id",
        "diversity_penalty", "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
        "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_range", "label2id",
        "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
        "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
        "output_scores", "pad_token_id", "prefix", "problem_type", "remove_invalid_values",
        "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
        "suppress_tokens", "task_specific_params", "temperature", "tokenizer_class", "top_k",
        "top_p", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
        "typical_p", "use_bfloat16", "use_cache",
    }
)
# fmt: on
_READ = frozenset((*_SIZES, "rms_norm_eps", "tie_word_embeddings"))
_ROPE = frozenset(("rope_theta", "rope_scaling", "rope_parameters"))
_ROPE_FIELDS = tuple(f.name for f in dataclasses.fields(RopeScaling))


# What `params.json` may hold; the last line sizes Meta's own runtime.
_META = frozenset(
    {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"}
    | {"ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope"}
    | {"max_batch_size", "max_seq_len", "model_parallel_size"}
)
_META_3_2 = {(2048, 16), (3072, 28)}  # (dim, n_layers) of Llama 3.2 1B and 3B


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


def _given(config: dict[str, Any], name: str, default: Any) -> Any:
    value = config.get(name)
    return default if value is None else value


def _check_huggingface(config: dict[str, Any]) -> None:
    for name, value in config.items():
        if name in _FIXED:
            if value is not None and value not in _FIXED[name]:
                raise ConfigError(
                    f"config.json has {name} = {value!r}; this model does only {_FIXED[name][0]!r}."
                )
        elif name not in _READ | _ROPE | _IRRELEVANT and value is not None:
            raise ConfigError(
                f"config.json has {name} = {value!r}, a setting that this model does not honour. "
                "If it does not change the forward pass, remove it from config.json."
            )


def _read_rope(config: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """`(theta, scaling)` from either generation of the file; both at once must agree."""
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(name), dict | None):
            raise ConfigError(f"config.json has {name} = {config[name]!r}; it must be an object.")
    new = config.get("rope_parameters")
    old_scaling = config.get("rope_scaling")
    if new is None:
        return float(_given(config, "rope_theta", 10000.0)), _read_scaling(
            "rope_scaling", old_scaling
        )
    new = dict(new)
    theta = new.pop("rope_theta", None)
    theta = float(theta if theta is not None else _given(config, "rope_theta", 10000.0))
    scaling = _read_scaling("rope_parameters", new)
    if config.get("rope_theta") is not None and float(config["rope_theta"]) != theta:
        raise ConfigError(
            f"config.json has rope_theta = {config['rope_theta']} and "
            f"rope_parameters.rope_theta = {theta}: which one is right?"
        )
    if old_scaling is not None and _read_scaling("rope_scaling", old_scaling) != scaling:
        raise ConfigError("config.json has rope_scaling and rope_parameters, and they disagree.")
    return theta, scaling


def _read_scaling(where: str, given: dict[str, Any] | None) -> RopeScaling | None:
    if given is None:
        return None
    given = dict(given)
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if given.get("partial_rotary_factor") in (1, 1.0):
        given.pop("partial_rotary_factor")
    given.pop("rope_theta", None)
    if kind not in ("default", "llama3"):
        raise ConfigError(
            f"config.json has {where}.rope_type = {kind!r}; this model does only 'llama3' and "
            "'default' (no scaling)."
        )
    surplus = sorted(set(given) - set(_ROPE_FIELDS if kind == "llama3" else ()))
    if surplus:
        raise ConfigError(
            f"config.json has {where}.{surplus[0]} = {given[surplus[0]]!r} (rope_type {kind!r}), "
            "a setting that this model does not honour."
        )
    if kind == "default":
        return None
    missing = sorted(set(_ROPE_FIELDS) - set(given))
    if missing:
        raise ConfigError(f"config.json: {where} of type 'llama3' lacks {', '.join(missing)}.")
    return RopeScaling(
        factor=float(given["factor"]),
        low_freq_factor=float(given["low_freq_factor"]),
        high_freq_factor=float(given["high_freq_factor"]),
        original_max_position_embeddings=int(given["original_max_position_embeddings"]),
    )
