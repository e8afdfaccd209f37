"""Published figures of accelerators, and the slices in which they are rented."""

from __future__ import annotations

import dataclasses

__all__ = ["CHIPS", "Chip"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip at its published best: what nothing that runs on it can beat.

    `memory` is in bytes, `flops` are dense bf16 operations a second, `bandwidth` and
    `interconnect` (both directions together) bytes a second. JAX sees `devices` of them in a chip,
    which have these in equal parts. `slices` are what Google Cloud rents, smallest first; of GPUs
    they are the usual counts in one machine.
    """

    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    slices: tuple[str, ...]
    source: str
    devices: int = 1
    tpu: bool = False


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_ONE_MACHINE = ("1", "2", "4", "8")
_GOOGLE, _NVIDIA = "https://cloud.google.com/tpu/docs", "https://www.nvidia.com/en-us/data-center"

#: By the name before the colon in `devices="v5e:4x4"`.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 400e9, _FLAT, f"{_GOOGLE}/v5e", tpu=True),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 1200e9, _SOLID, f"{_GOOGLE}/v5p", tpu=True),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 800e9, _FLAT, f"{_GOOGLE}/v6e", tpu=True),
    "tpu7x": Chip(
        192 * 2**30, 2307e12, 7380e9, 1200e9, _SOLID, f"{_GOOGLE}/tpu7x", devices=2, tpu=True
    ),
    "a100": Chip(80e9, 312e12, 2039e9, 600e9, _ONE_MACHINE, f"{_NVIDIA}/a100"),
    "h100": Chip(80e9, 989e12, 3350e9, 900e9, _ONE_MACHINE, f"{_NVIDIA}/h100"),
    "h200": Chip(141e9, 989e12, 4800e9, 900e9, _ONE_MACHINE, f"{_NVIDIA}/h200"),
}
