"""Which parts of a forward pass carry an answer: patching, swept over sites, and its estimate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm.auto import tqdm

from llama_jax.analysis.results import Result
from llama_jax.analysis.sweep import AXES, Patches, Receiver, Site, patched_logits
from llama_jax.base.modes import standard
from llama_jax.memory import free_memory, in_bytes
from llama_jax.metrics import Metric, bound
from llama_jax.points import Points, point_of, resolve

if TYPE_CHECKING:
    from llama_jax.llama import Llama, Prompt
    from llama_jax.run import Run

__all__ = ["PatchSweep", "SweepError", "attribution_patching", "patch_sweep"]


class SweepError(ValueError):
    """A sweep that its point, its axes or its prompts do not allow."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PatchSweep(Result):
    """The metric of the corrupted run with the clean run's tensors put in, site by site.

    Means over the batch. `values` has the axes that were swept over; `clean` and `corrupted` are
    the metric of the two runs without a patch. `estimated` says whether the values are
    `attribution_patching`'s.
    """

    point: str
    clean: float
    corrupted: float
    metric: str
    estimated: bool = False

    @property
    def effect(self) -> Float[Array, ...]:
        """What each patch changes: `values - corrupted`, 0 where it changes nothing."""
        return self.values - self.corrupted

    @property
    def restored(self) -> Float[Array, ...]:
        """`effect / (clean - corrupted)`: 1 where a patch brings all of the clean metric back.

        NaN everywhere where the two runs give the same metric.
        """
        gap = self.clean - self.corrupted
        return self.effect / (gap if gap else float("nan"))

    def top(self, k: int = 10) -> list[tuple[dict[str, int | str], float]]:
        """The k sites of the largest effect, either way: their coordinates, and the effect."""
        effect = np.asarray(self.effect)
        order = np.argsort(-np.abs(np.nan_to_num(effect)), axis=None, kind="stable")[:k]
        found = []
        for index in zip(*np.unravel_index(order, effect.shape), strict=True):
            at = zip(self.axes, index, strict=True)
            found.append(({axis: self.along(axis)[i] for axis, i in at}, float(effect[index])))
        return found

    def _summary(self) -> str:
        return (
            f"{self.point}: {self.metric} {super()._summary()}"
            f"{' by a linear estimate' if self.estimated else ''}; "
            f"clean {self.clean:.4g}, corrupted {self.corrupted:.4g}"
        )

    def _drawn(self) -> Mapping[str, Any]:
        return {**super()._drawn(), "values": self.effect}


@standard
def patch_sweep(
    llama: Llama,
    clean: Prompt,
    corrupted: Prompt,
    *,
    point: Points = "resid_pre",
    metric: Metric,
    by: str = "layer,position",
    budget: int | str | None = None,
) -> PatchSweep:
    """The metric of the corrupted prompt with one part of the clean run put in, for every part.

    `point` is one kind of tensor, in every layer (`"resid_pre"`, `"z"`, `"pattern"`) or in some
    (`("z", 3)`): any in a layer, or `"embed"`. `by` names what the sweep goes over: `layer`,
    `position` (of queries T), `head` (of key/value heads for `k` and `v`), `key` (positions S of a
    map), `neuron`. What it leaves out is patched together: `by="layer,head"` patches a head at all
    positions, `by="head,position"` in all layers that `point` names. `metric` takes the logits
    `[B, V]` behind each row's last token and gives `[B]`: any function of them, such as
    `logit_difference(" Mary", " John")`.

    The prompts are texts or tokens, batches too, of the same lengths in tokens row by row. Both are
    run once. Then only what a patch can change is computed, many sites at a time, in at most
    `budget` bytes (half of what is free by default): no layer below the patch, no position before
    it, in the last layer nothing but the last query, and nothing at all where both runs agree. The
    values are those of a full pass with `Patch` for each site, to 1e-4 of their range in f32.

    Raises `PromptError`, `PointError`, `SweepError`, `BudgetError`, before anything is patched.

    >>> from llama_jax import Llama
    >>> from llama_jax.analysis import logit_difference
    >>> llama = Llama.from_pretrained("cria")
    >>> told = "When {} and John went to the market, John gave a basket to"
    >>> sweep = patch_sweep(llama, told.format("Mary"), told.format("Rosa"), point="z",
    ...     metric=logit_difference(" Mary", " Rosa"), by="layer,head")
    >>> sweep.axes, sweep.values.shape, sweep.corrupted < 0 < sweep.clean
    (('layer', 'head'), (4, 8), True)

    Source: activation patching, arXiv 2404.15255; here as TransformerLens' `get_act_patch_*`.
    """
    swept = _Swept(llama, clean, corrupted, point, metric, by)
    allowed = free_memory(llama.device_count) // 2 if budget is None else in_bytes(budget)
    donor = llama.run(clean, swept.names, logits="last", budget=allowed)
    wanted = (*swept.names, *swept.streams, "k_rot", "v")
    own = llama.run(corrupted, wanted, logits="last", budget=allowed - donor.nbytes)
    room = allowed - donor.nbytes - own.nbytes
    result = swept.result(donor, own)
    layers = range(llama.config.num_hidden_layers)
    receiver = Receiver(
        llama.model,
        own.lengths,
        [own["k_rot", i] for i in layers],
        [own["v", i] for i in layers],
        own.logits[:, 0],
    )
    groups = list(swept.groups(donor, own))
    values = np.full([len(result.along(axis)) for axis in swept.by], result.corrupted)
    count = sum(len(sites) for _, _, sites in groups)
    with tqdm(total=count, desc="patching", unit="site", leave=False, delay=1) as bar:
        for layer, patches, sites in groups:
            for some, logits in patched_logits(receiver, patches, sites, room):
                found = np.asarray(_means(swept.metric, logits))
                for site, value in zip(some, found, strict=True):
                    values[swept.index(layer, site)] = value
                bar.update(len(some))
    return dataclasses.replace(result, values=jnp.asarray(values))


@standard
def attribution_patching(
    llama: Llama,
    clean: Prompt,
    corrupted: Prompt,
    *,
    point: Points = "resid_pre",
    metric: Metric,
    by: str = "layer,position",
    budget: int | str | None = None,
) -> PatchSweep:
    """`patch_sweep` estimated from one gradient: `(clean - corrupted) . d metric / d point`.

    Takes what `patch_sweep` takes and gives the same, in two forward passes and one backward pass,
    however many sites there are. The estimate is the first order of the patch's effect at the
    corrupted run, to 1e-5 of it in f64: exact where the metric is linear between the two runs, good
    for small differences, and wrong where a softmax or a norm saturates between them.

    >>> from llama_jax import Llama
    >>> from llama_jax.analysis import logit_difference
    >>> llama = Llama.from_pretrained("cria")
    >>> told = "When {} and John went to the market, John gave a basket to"
    >>> estimate = attribution_patching(llama, told.format("Mary"), told.format("Rosa"),
    ...     point="mlp.act", metric=logit_difference(" Mary", " Rosa"), by="layer,neuron")
    >>> estimate.values.shape
    (4, 640)

    Source: attribution patching, arXiv 2310.10348.
    """
    swept = _Swept(llama, clean, corrupted, point, metric, by)
    allowed = free_memory(llama.device_count) // 2 if budget is None else in_bytes(budget)
    donor = llama.run(clean, swept.names, logits="last", budget=allowed)
    own = llama.run(corrupted, swept.names, logits="last", budget=allowed - donor.nbytes)
    found = llama.gradients(
        corrupted, swept.metric, swept.names, budget=allowed - donor.nbytes - own.nbytes
    )
    result = swept.result(donor, own)
    values = np.full([len(result.along(axis)) for axis in swept.by], result.corrupted)
    rows = found.metric.size  # a gradient is that of its row's value, and the sweep's is the mean
    for name in swept.names:
        before, after = own.captured[name], donor.captured[name]
        change = jnp.where(before == after, 0, after - before) * found[name] / rows
        effect = _over(jnp.sum, change, swept.kind.axes, swept.others)
        layer = swept.layer_of(name)
        part = tuple(
            swept.layers.index(layer) if axis == "layer" else slice(None) for axis in swept.by
        )
        values[part] += np.asarray(effect)
    return dataclasses.replace(result, values=jnp.asarray(values), estimated=True)


class _Swept:
    """What a sweep goes over, read and checked."""

    def __init__(
        self,
        llama: Llama,
        clean: Prompt,
        corrupted: Prompt,
        point: Points,
        metric: Metric,
        by: str,
    ) -> None:
        self.names = resolve(point, llama.config.num_hidden_layers)
        if not self.names:
            raise SweepError(f"point={point!r} names no tensor; give one such as 'resid_pre'.")
        self.kind = point_of(self.names[0])
        self.metric = bound(metric, llama)
        self.title = getattr(metric, "__name__", None) or repr(metric)
        self.pieces = None
        kinds = list(dict.fromkeys(point_of(name).name for name in self.names))
        if len(kinds) > 1:
            raise SweepError(
                f"point={point!r} means {len(kinds)} kinds of tensors, {', '.join(kinds)}; a sweep "
                "patches one kind."
            )
        if not self.kind.in_layer and self.kind.name != "embed":
            raise SweepError(
                f"point={point!r} comes after all layers, where nothing is left to be caused: "
                "sweep over ('resid_post', -1) instead."
            )
        self.layers = sorted({self.layer_of(name) for name in self.names})
        self.by = _axes(by, self.kind.axes, self.kind.in_layer, repr(point))
        self.others = tuple(axis for axis in self.by if axis != "layer")
        prompts = [llama.read(prompt) for prompt in (clean, corrupted)]
        lengths = [prompt.lengths.tolist() for prompt in prompts]
        if lengths[0] != lengths[1]:
            raise SweepError(
                f"The clean prompt has {_said(lengths[0])} tokens and the corrupted one "
                f"{_said(lengths[1])}; a position is patched into the same position, so both need "
                "equally many. llama.pieces(llama.tokens(text)) shows them."
            )
        if len(lengths[0]) == 1 and llama.tokenizer is not None:
            pieces = [llama.pieces(prompt.tokens[0]) for prompt in prompts]
            self.pieces = [a if a == b else f"{a}/{b}" for a, b in zip(*pieces, strict=True)]

    @property
    def on_stream(self) -> str | None:
        """The stream that a patch is put into where it is no more than that; it enters a layer."""
        if len(self.layers) > 1 and "layer" not in self.by:
            return None
        return _STREAMS.get(self.kind.local)

    @property
    def streams(self) -> list[str]:
        """What the corrupted run must keep of its residual stream."""
        wanted = [self.on_stream or "resid_pre", *(["resid_mid"] if self._adds else [])]
        return [f"layers.{layer}.{name}" for layer in self.layers for name in wanted]

    def groups(self, donor: Run, own: Run) -> Iterator[tuple[int | None, Patches, list[Site]]]:
        """The sites by the layer that they are in, those left out that change nothing."""
        if "layer" not in self.by:
            yield from self._group(None, self.names, donor, own)
            return
        for name in self.names:
            yield from self._group(self.layer_of(name), (name,), donor, own)

    def _group(
        self, layer: int | None, names: Sequence[str], donor: Run, own: Run
    ) -> Iterator[tuple[int | None, Patches, list[Site]]]:
        differs = [donor.captured[name] != own.captured[name] for name in names]
        changed = np.any(
            [_changed(each, self.kind.axes, self.others, own.lengths) for each in differs], axis=0
        )
        last = own.config.num_hidden_layers - 1
        if self.layer_of(names[0]) == last and self.kind.local not in _READ_BY_OTHERS:
            positions = np.arange(changed.shape[1]) == own.lengths[:, None] - 1
            changed &= positions.reshape(*positions.shape, *[1] * (changed.ndim - 2))
        sites = list(_sites(changed, self.others))
        if not sites:
            return
        start = self.layer_of(names[0])
        stream = own.captured[f"layers.{start}.{self.on_stream or 'resid_pre'}"]
        entering, inside = None, {self.layer_of(name): donor.captured[name] for name in names}
        if self.on_stream:
            entering, inside = inside[start], {}
            if self._adds:
                entering = own.captured[f"layers.{start}.resid_mid"] + entering
            start += self.on_stream == "resid_post"
        yield (
            layer,
            Patches(self.kind.axes, self.kind.local, self.others, start, stream, entering, inside),
            sites,
        )

    @property
    def _adds(self) -> bool:
        return self.on_stream is not None and self.kind.local == "mlp.out"

    def layer_of(self, name: str) -> int:
        return int(name.split(".")[1]) if self.kind.in_layer else 0

    def index(self, layer: int | None, site: Site) -> tuple[int, ...]:
        """Where a site's value belongs."""
        at = dict(zip(self.others, site.at, strict=True))
        return tuple(
            self.layers.index(layer) if axis == "layer" else at[axis]  # type: ignore[arg-type]
            for axis in self.by
        )

    def result(self, donor: Run, own: Run) -> PatchSweep:
        """The sweep before any site is known."""
        clean, corrupted = (float(_mean(self.metric, run.logits[:, 0])) for run in (donor, own))
        first = own.captured[self.names[0]]
        letters = self.kind.axes.split()
        coordinates: dict[str, Sequence[int]] = {"layer": self.layers} if "layer" in self.by else {}
        for axis in self.others:
            letter = next(letter for letter in letters if letter in AXES[axis])
            coordinates[axis] = range(first.shape[letters.index(letter)])
        return PatchSweep(
            jnp.zeros([len(coordinates[axis]) for axis in self.by]),
            self.by,
            self.kind.local,
            clean,
            corrupted,
            self.title,
            coordinates=coordinates,
            pieces=self.pieces,
        )


# Where a tensor only goes into the residual stream, the stream itself is patched.
_STREAMS = {
    "embed": "resid_pre",
    "resid_pre": "resid_pre",
    "resid_post": "resid_post",
    "mlp.out": "resid_post",
}


# What other positions read of a position within its layer; anything else acts there alone.
_READ_BY_OTHERS = {
    "embed",
    "resid_pre",
    *(f"input_layernorm.{part}" for part in ("scale", "normalized", "out")),
    *(f"self_attn.{part}" for part in ("k", "v", "k_rot")),
}


def _axes(by: str, axes: str, in_layer: bool, what: str) -> tuple[str, ...]:
    possible = ["layer"] if in_layer else []
    possible += [name for name, letters in AXES.items() if set(letters) & set(axes.split())]
    asked = (
        tuple(part.strip() for part in by.split(",")) if isinstance(by, str) else tuple(by or ())
    )
    if not asked or not set(asked) <= set(possible) or len(set(asked)) < len(asked):
        raise SweepError(
            f"by={by!r}: a sweep over {what} can go over {', '.join(possible)}, each once; "
            f"for example by={','.join(possible[:2])!r}."
        )
    return asked


def _over(function: Any, array: Array, axes: str, by: Sequence[str], keep: str = "") -> Array:
    """Reduces all axes but those in `keep`, which come first, and `by`, in their order."""
    letters = axes.split()
    wanted = [*keep, *(next(a for a in letters if a in AXES[axis]) for axis in by)]
    array = function(array, axis=tuple(n for n, a in enumerate(letters) if a not in wanted))
    left = [letter for letter in letters if letter in wanted]
    return jnp.transpose(array, [left.index(letter) for letter in wanted])


def _changed(
    differs: Bool[Array, ...], axes: str, by: Sequence[str], lengths: np.ndarray
) -> Bool[np.ndarray, "B T ..."]:
    """Where the runs differ: by row, position, and the sweep's other axes."""
    rest = [axis for axis in by if axis != "position"]
    found = np.asarray(_over(jnp.any, differs, axes, rest, keep="BT"))
    real = np.arange(found.shape[1]) < lengths[:, None]
    return np.array(found & real.reshape(*real.shape, *[1] * (found.ndim - 2)))


def _sites(changed: Bool[np.ndarray, "B T ..."], by: Sequence[str]) -> Iterator[Site]:
    if "position" in by:
        # Each position is a site of its own: moved to where it stands among the axes.
        at = by.index("position")
        anywhere: np.ndarray = np.moveaxis(changed, 1, at + 1)
    else:
        anywhere, first = np.any(changed, axis=1), np.argmax(changed, axis=1)
    for index in np.ndindex(*anywhere.shape[1:]):
        rows = [row for row in range(len(anywhere)) if anywhere[(row, *index)]]
        if rows:
            own = {r: index[at] if "position" in by else int(first[(r, *index)]) for r in rows}
            yield Site(index, own)


def _mean(metric: Metric, logits: Float[Array, "B V"]) -> Float[Array, ""]:
    values = jnp.asarray(metric(logits))
    if values.shape not in ((), logits.shape[:1]):
        raise SweepError(
            f"The metric gives shape {list(values.shape)}; it must give a value for each of the "
            f"{len(logits)} rows, [{len(logits)}], or one number."
        )
    return jnp.mean(values)


def _means(metric: Metric, logits: Float[Array, "sites B V"]) -> Float[Array, " sites"]:
    try:
        return jax.vmap(functools.partial(_mean, metric))(logits)
    except jax.errors.JAXTypeError:  # a metric that needs numbers, such as one in NumPy
        return jnp.stack([_mean(metric, each) for each in logits])


def _said(lengths: Sequence[int]) -> str:
    return str(lengths[0]) if len(lengths) == 1 else f"rows of {list(lengths)}"
