"""A small picture of numbers as a PNG, for places that run no scripts."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import treescope
from PIL import Image

__all__ = ["Cells", "png"]

NOT_FINITE = (255, 0, 255)
LEAST, MOST = 400, 900  # pixels of the longer side


class Cells(NamedTuple):
    """A matrix to draw; `diverging` colours are symmetric around 0. Masked cells are NaN in `mask`.

    `low` and `high` are the ends of the colours, by default those of the finite values.
    """

    values: np.ndarray
    diverging: bool = False
    mask: np.ndarray | None = None
    low: float | None = None
    high: float | None = None


def png(cells: Cells) -> bytes:
    """The picture; each number is at least one pixel, NaN and infinity are magenta.

    >>> png(Cells(np.eye(3)))[:4]
    b'\\x89PNG'
    """
    values = np.asarray(cells.values, np.float64)
    finite = np.isfinite(values)
    inside = values[finite]
    low = inside.min(initial=0.0) if cells.low is None else cells.low
    high = inside.max(initial=low) if cells.high is None else cells.high
    if cells.diverging:
        high = max(abs(low), abs(high))
        low = -high
    part = (np.where(finite, values, low) - low) / ((high - low) or 1.0)
    around_zero = cells.diverging
    colours = (
        treescope.default_diverging_colormap
        if around_zero
        else treescope.default_sequential_colormap
    )
    table = np.array(colours.get(), np.uint8)
    drawn = table[np.rint(np.clip(part, 0, 1) * (len(table) - 1)).astype(int)]
    drawn[~finite] = NOT_FINITE
    opaque = np.full(values.shape, 255, np.uint8)
    if cells.mask is not None:
        opaque[cells.mask] = 0  # the page shows through
    drawn = np.dstack([drawn, opaque])
    # Whole pixels a cell, so that no two cells mix.
    repeat = max(1, LEAST // max(values.shape)) if max(values.shape) < LEAST else 1
    picture = Image.fromarray(drawn).resize(
        (values.shape[1] * repeat, values.shape[0] * repeat), Image.Resampling.NEAREST
    )
    holder = io.BytesIO()
    picture.save(holder, "PNG", optimize=True)
    return holder.getvalue()
