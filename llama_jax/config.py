"""What a Llama is: its sizes and rotary frequencies. How it runs (dtype, mesh) is not here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from llama_jax.base.fields import FLAG, POSITIVE, SIZE, Kind, wrong_fields

__all__ = ["ConfigError", "LlamaConfig", "RopeScaling"]


class ConfigError(ValueError):
    """A configuration that is inconsistent, or that asks for something this model does not do."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of longer contexts are made of those of shorter ones.

    `rope_type` `"llama3"` is Llama 3.1's: wavelengths below `original_max_position_embeddings /
    high_freq_factor` stay, those above `original_max_position_embeddings / low_freq_factor` are
    multiplied by `factor`, those between are blended. Source: `apply_scaling` in Meta's reference,
    with the factor taken from the config (8 for 3.1 and 3.3, 32 for 3.2) where the reference
    hard-codes 8. `"linear"` multiplies all wavelengths by `factor` and takes nothing else
    (arXiv 2306.15595). Raises `ConfigError` for values of the wrong type or range.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    rope_type: Literal["llama3", "linear"] = "llama3"

    def __post_init__(self) -> None:
        _check(vars(self), _SCALING_KINDS, "rope_scaling.")
        if not self.factor >= 1:
            raise ConfigError(f"rope_scaling.factor is {self.factor}; it must be at least 1.")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: low_freq_factor ({self.low_freq_factor}) must be positive and "
                f"below high_freq_factor ({self.high_freq_factor})."
            )
        if self.rope_type == "linear" and vars(self) != vars(RopeScaling(self.factor)) | {
            "rope_type": "linear"
        }:
            raise ConfigError("rope_scaling of rope_type 'linear' has a factor and nothing else.")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture of a Llama, with Hugging Face's field names.

    A Llama 3 has no biases. With `attention_bias` the four projections of attention have one each,
    with `mlp_bias` the three of the MLP, as some other Llamas have.

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
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        _check(vars(self), _KINDS)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): the query heads cannot be "
                "shared out evenly."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even size.")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ConfigError(
                f"rope_scaling is a {type(self.rope_scaling).__name__}; it must be a RopeScaling."
            )

    @classmethod
    def preset(cls, name: str) -> LlamaConfig:
        """One of Meta's sizes by name, e.g. `"llama-3.1-8b"`; an unknown name lists them all."""
        if not isinstance(name, str):
            raise TypeError(f"name is a {type(name).__name__}; a preset is named in text.")
        try:
            return PRESETS[name.lower()]
        except KeyError:
            near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"There is no preset {name!r}.{hint} The presets are: {', '.join(PRESETS)}."
            ) from None

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Reads the content of a Hugging Face `config.json`.

        Takes `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5).
        Keys that are absent take the values that transformers would give them. A key that
        transformers' `LlamaForCausalLM` ignores is ignored, and named in a warning unless it is one
        that every file has; any other that this model does not honour raises `ConfigError`, as does
        a value of the wrong type.
        """
        from llama_jax.config_json import from_huggingface  # which needs this class

        return from_huggingface(config)

    @classmethod
    def from_meta(
        cls,
        params: Mapping[str, Any],
        *,
        tie_word_embeddings: bool | None = None,
        rope_scaling_factor: float | None = None,
    ) -> LlamaConfig:
        """Reads the content of Meta's `params.json`.

        The feed-forward size follows from `multiple_of` and `ffn_dim_multiplier`. The file does not
        say two things. The factor of the rotary scaling is 32 for Llama 3.2's dimensions and else
        8; whether the head is tied is likewise Llama 3.2's dimensions' to say, where the tensors
        are not at hand. The arguments overrule both. Raises `ConfigError` for a setting that this
        model does not honour, and for a value of the wrong type.

        >>> config = LlamaConfig.from_meta({"dim": 4096, "n_layers": 32, "n_heads": 32,
        ...     "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3,
        ...     "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0,
        ...     "use_scaled_rope": True})
        >>> config == LlamaConfig.preset("llama-3.1-8b")
        True

        Source: `llama_models/llama3/model.py` and `sku_list.py`.
        """
        from llama_jax.config_json import from_meta

        return from_meta(params, tie_word_embeddings, rope_scaling_factor)

    def to_meta(self) -> dict[str, Any]:
        """The content of a `params.json` that `llama-models` reads.

        Raises `ConfigError` for what it cannot say: biases, another head size than dim / heads, or
        another rotary scaling than that of Llama 3.1 and 3.2.
        """
        from llama_jax.config_json import to_meta

        return to_meta(self)

    def to_huggingface(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers 4.43 and later read."""
        from llama_jax.config_json import to_huggingface

        return to_huggingface(self)

    @property
    def parameter_count(self) -> int:
        """How many numbers the model holds; a tied head counts once."""
        d, f, h = self.hidden_size, self.intermediate_size, self.head_dim
        query, key_value = h * self.num_attention_heads, h * self.num_key_value_heads
        layer = 2 * d * (query + key_value) + 3 * d * f + 2 * d
        layer += (query + 2 * key_value + d) * self.attention_bias + (2 * f + d) * self.mlp_bias
        tables = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * layer + d


_KINDS: dict[str, Kind] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "rms_norm_eps": POSITIVE,
    "rope_theta": POSITIVE,
    "tie_word_embeddings": FLAG,
    "max_position_embeddings": SIZE,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
}
_SCALING_KINDS: dict[str, Kind] = {
    "factor": POSITIVE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": SIZE,
    "rope_type": Kind("'llama3' or 'linear'", lambda value: value in ("llama3", "linear")),
}


def _check(fields: Mapping[str, Any], kinds: Mapping[str, Kind], prefix: str = "") -> None:
    absent = [f"{prefix}{name} is None." for name in kinds if fields[name] is None]
    wrong = wrong_fields(fields, kinds, prefix) or " ".join(absent)
    if wrong:
        raise ConfigError(wrong)


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
