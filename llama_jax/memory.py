"""What fits: a size is compared with the memory there is before anything large is made."""

from __future__ import annotations

import numbers
import os
import re

import jax
import psutil

__all__ = ["check_fits", "device_memory", "free_memory", "in_bytes", "readable"]

_UNITS = {"": 1, "B": 1, **{f"{p}B": 10**e for p, e in zip("KMGT", (3, 6, 9, 12), strict=True)}}
_UNITS |= {f"{p}iB".upper(): 2**e for p, e in zip("KMGT", (10, 20, 30, 40), strict=True)}


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


def free_memory(devices: int = 1) -> int:
    """Bytes that are free on so many devices like the first.

    Those of a CPU share what the machine can give to a program.
    """
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return devices * (statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    return psutil.virtual_memory().available


def check_fits(nbytes: int, what: str, parts: int = 1) -> None:
    """Raises `MemoryError` with both numbers where `nbytes` cannot fit on the first device.

    `parts` devices share them out; those of a CPU have one memory.
    """
    memory, platform = device_memory(), jax.devices()[0].platform
    parts = 1 if platform == "cpu" else parts
    if memory is not None and nbytes > memory * parts:
        each = f"{parts} x " if parts > 1 else ""
        raise MemoryError(
            f"{what} takes {nbytes / 2**30:,.1f} GiB of weights and {platform} has "
            f"{each}{memory / 2**30:,.1f} GiB of memory. Llama.abstract shows its tree without "
            "any; dtype='bfloat16' halves what float32 takes."
        )


def in_bytes(size: int | float | str) -> int:
    """A number of bytes from a number or from text: units of 1024 (`KiB` … `TiB`) or 1000 (`KB` …).

    >>> in_bytes("2GiB"), in_bytes("1.5 MB"), in_bytes(4096)
    (2147483648, 1500000, 4096)
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size)
        if match and match[2].upper() in _UNITS:
            return int(float(match[1]) * _UNITS[match[2].upper()])
    elif isinstance(size, numbers.Real) and not isinstance(size, bool) and size >= 0:
        return int(size)
    raise ValueError(f"{size!r} is no size: give bytes, or text such as '2GiB' or '500MB'.")


def readable(nbytes: int) -> str:
    """A size for people.

    >>> readable(1536), readable(3 * 2**40)
    ('1.5 KiB', '3.0 TiB')
    """
    size, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
