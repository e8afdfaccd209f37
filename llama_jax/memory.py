"""What fits: a size is compared with the memory there is before anything large is made."""

from __future__ import annotations

import os

import jax

__all__ = ["check_fits", "device_memory"]


def device_memory() -> int | None:
    """Bytes that the first device may hold, or None where the platform does not say.

    On a CPU this is the machine's physical memory.
    """
    device = jax.devices()[0]
    statistics = device.memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(nbytes: int, what: str) -> None:
    """Raises `MemoryError` with both numbers where `nbytes` cannot fit on the first device."""
    memory = device_memory()
    if memory is not None and nbytes > memory:
        raise MemoryError(
            f"{what} takes {nbytes / 2**30:,.1f} GiB of weights and {jax.devices()[0].platform} "
            f"has {memory / 2**30:,.1f} GiB of memory. Llama.abstract shows its tree without any; "
            "dtype='bfloat16' halves what float32 takes."
        )
