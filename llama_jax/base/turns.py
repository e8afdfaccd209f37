"""Compiled programs take turns where CPU devices make up a mesh."""

from __future__ import annotations

import functools
import threading
from typing import Any

import jax

__all__ = ["in_turn"]

# XLA's CPU devices meet in a sum or a gather on the threads of one pool. Of too many programs on
# their way each holds some, none has all, and after 40 s XLA ends the process.
_LAUNCHED = threading.RLock()


def in_turn(compiled: Any) -> Any:
    """What `jax.jit` made; launches on several CPU devices wait for each other, and for results.

    Nothing else waits: not what runs on one device, on GPUs or TPUs, nor what is being traced.

    >>> int(in_turn(jax.jit(lambda x: x + 1))(1))
    2
    """

    @functools.wraps(compiled)
    def launch(*args: Any, **kwargs: Any) -> Any:
        if not _several_cpus() or not _on_cpus(args, kwargs):
            return compiled(*args, **kwargs)
        with _LAUNCHED:
            return jax.block_until_ready(compiled(*args, **kwargs))

    for name in ("lower", "trace", "eval_shape", "clear_cache", "_cache_size"):
        setattr(launch, name, getattr(compiled, name))
    return launch


@functools.cache
def _several_cpus() -> bool:
    try:
        return len(jax.local_devices(backend="cpu")) > 1
    except RuntimeError:  # JAX_PLATFORMS leaves them out
        return False


def _on_cpus(*arguments: Any) -> bool:
    """Whether arrays, or places for them, are on several CPU devices."""
    for leaf in jax.tree.leaves(arguments):
        if isinstance(leaf, jax.core.Tracer):
            return False
        place = getattr(leaf, "sharding", leaf)
        if isinstance(place, jax.sharding.Sharding) and len(place.device_set) > 1:
            first: Any = next(iter(place.device_set))
            return first.platform == "cpu"
    return False
