"""Names of dtypes: "bf16" and "bfloat16", "f32" and "float32" are the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["DtypeError", "as_dtype"]

_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}


class DtypeError(ValueError):
    """A dtype that weights cannot have."""


def as_dtype(dtype: Any) -> jnp.dtype:
    """The floating-point dtype of a name, a NumPy or JAX dtype, or a scalar type.

    Raises `DtypeError` for any other dtype, and for float64 where JAX would make it float32.

    >>> as_dtype("bf16") == as_dtype("bfloat16") == as_dtype(jnp.bfloat16)
    True
    """
    name = _NAMES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    try:
        found = None if name is None else jnp.dtype(name)  # NumPy takes None for float64
    except TypeError:
        found = None
    if found is None or found.name not in _NAMES.values():
        known = ", ".join(f"{long} ({short})" for short, long in _NAMES.items())
        raise DtypeError(f"dtype is {dtype!r}; weights can be {known}.")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise DtypeError(
            "dtype is float64, which JAX turns into float32 unless it is told otherwise: call "
            'jax.config.update("jax_enable_x64", True) first, or ask for "float32".'
        )
    return found
