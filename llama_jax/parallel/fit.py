"""Will it fit? The real compiler's answer for devices that need not be there.

The very programs that `generate` and `train` run are lowered with shapes only. For TPUs libtpu
compiles them on any x86-64 Linux machine; for the devices at hand their own compiler does; for
other GPUs the shapes say what they can. Nothing of the model's size is made.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llama_jax.base.choice import integer
from llama_jax.capture import Captures, taps_for, wanted
from llama_jax.config import LlamaConfig
from llama_jax.dtypes import as_dtype
from llama_jax.generate import advance
from llama_jax.memory import device_memory, readable
from llama_jax.model import CACHE_AXES, Cache, Model, leaf_numbers, parameters, place_of
from llama_jax.parallel.chips import CHIPS, Chip
from llama_jax.parallel.mesh import (
    abstract_mesh,
    make_mesh,
    mesh_sizes,
    parts,
    sharding,
    weight_axes,
)
from llama_jax.parallel.placement import bars
from llama_jax.points import point_of
from llama_jax.tables import Table
from llama_jax.tune import Batch
from llama_jax.tune.loop import update

__all__ = ["Collective", "Fit", "FitError", "Suggestion", "Suggestions", "fit"]

Task = Literal["decode", "prefill", "train"]
_LETTERS = {
    "weights": "w",
    "optimizer": "o",
    "gradients": "g",
    "cache": "k",
    "captures": "c",
    "temporaries": "t",
    "other": "x",
}
PREFILL = 2048  # tokens of a prompt at a time


class FitError(ValueError):
    """Devices that are not known, or a step that cannot be."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """What devices send each other in a step: how often, and how many bytes each gets by it."""

    kind: str  # "all-reduce", "all-gather", …
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(Table):
    """One step of a Llama on some devices: what each holds, what they send, how long it takes.

    All bytes are one device's. `breakdown` adds up to `bytes_per_device`: weights, optimizer,
    gradients (which a compiler counts among the temporaries), cache, captures, temporaries, and
    what else the program takes and gives. `seconds` is an
    estimate: the least that the chips' published rates allow, latencies left out; `estimate` has
    its parts and the rates' source. `method` says where the bytes are from.
    """

    model: str
    devices: str
    count: int
    mesh: Mapping[str, int]
    task: Task
    batch: int
    context: int
    layers: int
    fits: bool
    memory: int
    bytes_per_device: int
    breakdown: Mapping[str, int]
    collectives: tuple[Collective, ...]
    flops: float  # of a step, on all devices together
    estimate: Mapping[str, Any]
    method: str
    warnings: tuple[str, ...]
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """At least so long a step takes; nan where no rates are known."""
        return self.estimate["seconds"]

    @property
    def per_layer(self) -> dict[str, float]:
        """How often each kind of collective happens in a layer, the few outside shared out."""
        return {each.kind: each.count / self.layers for each in self.collectives}

    def bar(self, width: int = 48) -> str:
        """One device's memory as a line: what is free is `·`, what is needed beyond it `!`.

        The parts are w(eights), o(ptimizer), g(radients), k(eys and values: the cache), c(aptures),
        t(emporaries) and what else there is, x.
        """
        scale = width / max(self.memory, self.bytes_per_device)
        edges = np.cumsum(list(self.breakdown.values())) * scale
        letters = [_LETTERS[name] for name in self.breakdown]
        limit = self.memory * scale
        return "".join(
            "!"
            if at > limit
            else next((x for x, edge in zip(letters, edges, strict=True) if at < edge), "·")
            for at in np.arange(width) + 0.5
        )

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        shown = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        step = {"decode": "token", "prefill": "chunk", "train": "step"}[self.task]
        rows = [(name, readable(size), "") for name, size in self.breakdown.items() if size]
        verdict = "fits" if self.fits else "does NOT fit"
        rows += [
            ("a device holds", readable(self.bytes_per_device), verdict),
            ("of its memory", readable(self.memory), self.bar()),
        ]
        rows += [
            (f"{x.count} {x.kind}", readable(x.bytes), f"{x.count / self.layers:.3g} a layer")
            for x in self.collectives
        ]
        if math.isfinite(self.seconds):
            rows.append((f"a {step}, at least", _duration(self.seconds), self.estimate["bound"]))
        title = f"{self.model}, {self.task}, {self.batch} x {self.context}"
        devices = f"{self.count} device{'s' if self.count > 1 else ''}"
        header = (title, devices, f"{self.devices}{f': {shown}' if shown else ''}")
        return header, rows, "\n".join((*(f"! {text}" for text in self.warnings), self.method))

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """The table, and a bar for each device against its memory."""
        from treescope import rendering_parts as parts

        lines: list[Any] = [parts.text(repr(self))]
        for number in range(min(self.count, 16)):
            bar = bars(self.breakdown, self.memory)
            lines.append(parts.siblings(parts.text(f"device {number:>3}  "), bar))
        if self.count > 16:
            lines.append(parts.comment_color(parts.text(f"… and {self.count - 16} more, alike")))
        key = ", ".join(name for name, size in self.breakdown.items() if size)
        lines.append(parts.comment_color(parts.text(f"from the left: {key}")))
        return parts.on_separate_lines(lines)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The smallest slice of a kind that holds it, from shapes."""

    devices: str
    count: int
    mesh: Mapping[str, int]
    bytes_per_device: int
    memory: int


@dataclasses.dataclass(frozen=True, repr=False)
class Suggestions(Table):
    """The smallest slice of each kind of chip that fits, from shapes and room for temporaries."""

    model: str
    rows: tuple[Suggestion, ...]

    def __iter__(self) -> Iterator[Suggestion]:
        return iter(self.rows)

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        rows = [
            (
                row.devices,
                str(row.count),
                ", ".join(f"{axis}={size}" for axis, size in row.mesh.items() if size > 1),
                readable(row.bytes_per_device),
                readable(row.memory),
            )
            for row in self.rows
        ]
        first = self.rows[0].devices if self.rows else "…"
        last = f'From shapes alone; fit(..., devices="{first}") asks the compiler.'
        if not self.rows:
            last = "No slice that is known holds it: try fewer rows or a shorter context."
        return (f"{self.model} fits on", "devices", "mesh", "each holds", "of"), rows, last


def fit(
    model: str | LlamaConfig,
    devices: str | None = "local",
    dtype: Any = "bf16",
    batch: int = 1,
    context: int = 8192,
    task: Task = "decode",
    capture: Captures = (),
    mesh: Mapping[str, int] | str | None = None,
) -> Fit | Suggestions:
    """What a step of a Llama takes on devices that need not be there.

    `model` is a preset's name or a config; `devices` a slice of TPUs (`"v5e:4x4"`, `"v5p:2x2x2"`,
    `"v6e:8x8"`, `"tpu7x:2x2x1"`), GPUs of one machine (`"h100:8"`), `"local"` for those at hand
    (or those of one platform, `"cpu"`), or None for the smallest slices that fit. `task` is one of

    - `"decode"`: one token of `batch` rows behind a cache of `context` positions,
    - `"prefill"`: 2,048 tokens of each row, with a cache that is full when they are in,
    - `"train"`: a step of AdamW on `batch` rows of `context` tokens, all weights trained, each
      layer's activations made again on the way back (`remat`).

    `capture` names points as `Llama.run` does; the step then returns them. `mesh` is chosen where
    it is not given: heads over as many devices as divide them and still leave room, then rows or
    positions; in training all devices share out weights and rows (`fsdp`).

    The bytes are the TPU compiler's (libtpu, in `pip install 'llama-jax[tpu]'`; no TPU is needed),
    the local devices' compiler's, or, for other GPUs, of shapes, which know no temporaries but a
    training step's gradients, logits and what enters each layer.

    Raises `FitError` and `MeshError` (also where some of the devices would have nothing to do),
    what `Llama.run` raises for `capture`, `ConfigError`, `DtypeError`, and `ImportError` without
    libtpu.

    >>> report = fit("llama-3.2-1b", "h100:1", batch=4, context=4096)
    >>> report.fits, report.breakdown["weights"], report.breakdown["cache"]
    (True, 2471628800, 536870928)
    """
    config = LlamaConfig.preset(model) if isinstance(model, str) else model
    if not isinstance(config, LlamaConfig):
        raise FitError(f"model is {model!r}; it must be a preset's name or a LlamaConfig.")
    name = model if isinstance(model, str) else "A model of this config"
    if not isinstance(task, str) or task not in ("decode", "prefill", "train"):
        raise FitError(f"task is {task!r}; it must be 'decode', 'prefill' or 'train'.")
    batch, context = _whole_number("batch", batch), _whole_number("context", context)
    if context > config.max_position_embeddings:
        raise FitError(
            f"context is {context:,}; {name} has {config.max_position_embeddings:,} positions."
        )
    step = functools.partial(_Step, config, as_dtype(dtype), batch, context, task, capture)
    if devices is None:
        return Suggestions(name, tuple(_smallest(step, config, batch, context, task)))
    chip, count, present = _devices(devices)
    memory = _memory(chip, count)
    if mesh is None:
        chosen = _chosen(step, config, count, batch, context, task, memory)
        if chosen is None:
            raise _idle(devices, batch, context)
        sizes = chosen
    else:
        sizes = mesh_sizes(mesh, config)
    asked = math.prod(sizes.values())
    if asked != count:
        raise FitError(f"The mesh has {asked} devices, and {devices} has {count}.")
    if not _all_work(sizes, batch, context):
        raise _idle(devices, batch, context)
    one = step(sizes, present)
    known = one.sizes()
    if present is None:
        made = _Compiled(sum(known.values()), known.get("temporaries", 0), (), 0.0)
    else:
        made = one.compiled()
    breakdown = {**dict.fromkeys(_LETTERS, 0), **known, "temporaries": made.temporaries}
    breakdown["other"] = max(made.total - sum(breakdown.values()), 0)
    total = sum(breakdown.values())
    return Fit(
        model=name,
        devices=devices,
        count=count,
        mesh=sizes,
        task=task,
        batch=batch,
        context=context,
        layers=config.num_hidden_layers,
        fits=total <= memory and not made.refused,
        memory=memory,
        bytes_per_device=total,
        breakdown=breakdown,
        collectives=made.collectives,
        flops=one.flops(),
        estimate=_estimate(chip, count, one, known, made.collectives),
        method=_method(devices, chip, present, made, task),
        warnings=tuple(one.warnings(made)),
        compile_seconds=made.seconds,
    )


_MOST = 2**31 - 1


def _whole_number(what: str, given: Any) -> int:
    size = integer(given)
    if size is None or not 1 <= size <= _MOST:
        raise FitError(f"{what} is {given!r}; it must be a whole number from 1 to {_MOST:,}.")
    return size


def _all_work(sizes: Mapping[str, int], batch: int, context: int) -> bool:
    """Whether there are positions for all devices that share out rows and positions."""
    rows, positions = sizes["data"] * sizes["fsdp"], sizes["sequence"]
    return positions <= context and rows * positions <= batch * context


def _idle(devices: str, batch: int, context: int) -> FitError:
    return FitError(
        f"{devices}: {batch:,} x {context:,} positions and the model's heads are no work for so "
        "many devices. Give fewer, or more rows in batch=."
    )


class _Compiled(NamedTuple):
    """What a compiler said, in bytes a device."""

    total: int
    temporaries: int
    collectives: tuple[Collective, ...]
    seconds: float
    refused: str = ""


@dataclasses.dataclass
class _Step:
    """A step's program in shapes."""

    config: LlamaConfig
    dtype: jnp.dtype
    batch: int
    context: int
    task: Task
    capture: Captures
    mesh_sizes: Mapping[str, int]
    present: Sequence[Any] | None  # the devices to compile for

    def __post_init__(self) -> None:
        self.mesh: Any = abstract_mesh(self.mesh_sizes)
        if self.present is not None:
            self.mesh = make_mesh(self.mesh_sizes, self.config, self.present)
        asked = {"decode": 1, "prefill": min(PREFILL, self.context)}
        self.tokens = asked.get(self.task, self.context)
        captures = wanted(self.capture, self.config.num_hidden_layers)
        if captures and self.task == "train":
            raise FitError("A training step returns no captures: leave capture= out.")
        held = {name: capture.while_writing for name, capture in captures.items()}
        self.taps = taps_for(held, {}, self.config, np.broadcast_to(self.tokens, self.batch))

    @functools.cached_property
    def model(self) -> Model:
        return Model(self.config, self.dtype, self.mesh)

    @functools.cached_property
    def leaves(self) -> tuple[Any, ...]:
        return tuple(jax.tree.leaves(self.model))

    @functools.cached_property
    def structure(self) -> Any:
        return jax.tree.structure(self.model)

    def sizes(self) -> dict[str, int]:
        """What shapes alone tell of the bytes of a device."""
        itemsize = jnp.dtype(self.dtype).itemsize
        weights = itemsize * sum(
            count * math.prod(shape) // parts(axes, self.mesh)
            for (shape, axes), count in _weights_by_kind(self.config).items()
        )
        if self.task == "train":
            found = {"weights": weights, "optimizer": 2 * weights + 4}  # two moments and a count
            if self.present is None:  # a compiler counts these among its temporaries
                # On the way back gradients take the room of what was kept on the way there.
                kept = max(self._kept() - weights, 0)
                found |= {"gradients": weights, "temporaries": kept}
            return found
        found = {"weights": weights, "cache": _bytes(self._cache())}
        if self.taps:
            shapes = jax.eval_shape(functools.partial(advance, self.structure), *self._arguments())
            found["captures"] = sum(map(self._captured, *zip(*shapes[2].items(), strict=True)))
        return found

    def _kept(self) -> int:
        """What a training step holds before it goes back: what enters each layer, and logits."""
        c = self.config
        width = self._batched("B T D", self.dtype, c.hidden_size)
        return c.num_hidden_layers * _bytes(width) + _bytes(self._logits())

    def _logits(self) -> Any:
        return self._batched("B T V", jnp.float32, self.config.vocab_size)

    def _batched(self, axes: str, dtype: Any, size: int) -> Any:
        rows = self.batch + -self.batch % parts("B", self.mesh)
        shape = (rows, self.tokens, size)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(axes, self.mesh, shape))

    def _captured(self, name: str, kept: Any) -> int:
        letters = point_of(name).axes.split()
        places = (sharding(letters[: x.ndim], self.mesh, x.shape) for x in jax.tree.leaves(kept))
        return _bytes(
            [
                jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
                for x, place in zip(jax.tree.leaves(kept), places, strict=True)
            ]
        )

    def compiled(self) -> _Compiled:
        """What the compiler makes of it."""
        start = time.perf_counter()
        try:
            if self.task == "train":
                weights = self._weights()
                state = self._optimizer_state(weights)
                layout = tuple(map(place_of, jax.tree.leaves((weights, state))))
                tokens: Any = self._whole((self.batch, self.context), np.int32)
                counts: Any = self._whole((self.batch, self.context - 1), np.float32)
                places = tuple(leaf_numbers(self.model).items())
                frozen = (None,) * len(self.leaves)
                lowered = update.lower(
                    self.structure,
                    places,
                    _ADAMW,
                    layout,
                    True,
                    weights,
                    state,
                    frozen,
                    Batch(tokens, counts),
                )
            else:
                lowered = advance.lower(self.structure, *self._arguments())
            program: Any = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = max(_said_sizes(str(error)), default=0)
            known = sum(self.sizes().values())
            temporaries = max(needed - known, 0)
            seconds = time.perf_counter() - start
            refused = str(error).split("RESOURCE_EXHAUSTED: ")[1].splitlines()[0]
            return _Compiled(known + temporaries, temporaries, (), seconds, refused)
        found = program.memory_analysis()
        total = (
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
        )
        if self.present is not None and self.present[0].platform == "tpu":
            total += found.generated_code_size_in_bytes  # a program lies in the same memory
        sent = _collectives(program.as_text())
        return _Compiled(total, found.temp_size_in_bytes, sent, time.perf_counter() - start)

    def flops(self) -> float:
        """Of the matrix products, on all devices: 2 for each weight and token, 4 for each score."""
        c, tokens = self.config, self.batch * self.tokens
        head = c.vocab_size * c.hidden_size
        layers = c.parameter_count - head * (1 if c.tie_word_embeddings else 2)
        read = self.context if self.task != "train" else self.context / 2
        scores = 4 * tokens * read * c.num_attention_heads * c.head_dim * c.num_hidden_layers
        if self.task == "train":  # forward, forward again, and twice the work backward
            return 4 * (2 * tokens * layers + scores) + 3 * 2 * tokens * head
        return 2 * tokens * layers + scores + 2 * self.batch * head

    def warnings(self, made: _Compiled) -> Iterator[str]:
        """What will be slow, or is held more than once."""
        c, sizes = self.config, self.mesh_sizes
        if made.refused:
            yield f"The compiler stopped: {made.refused} What is sent was not counted."
        if sizes["group"] > 1:
            yield (
                f"tensor={sizes['tensor'] * sizes['group']} is more than the "
                f"{c.num_key_value_heads} KV heads: each, and its cache, is held by "
                f"{sizes['group']} devices."
            )
        if sizes["fsdp"] > 1 and self.task != "train":
            gathered = sum(x.bytes for x in made.collectives if x.kind == "all-gather")
            yield (
                f"fsdp={sizes['fsdp']}: every step gathers all weights"
                + (f", {readable(gathered)} to each device." if gathered else ".")
            )
        if sizes["sequence"] > 1 and self.task == "prefill":
            yield "sequence: each chunk gathers the keys and values of all positions."
        rows = parts("B", self.mesh)
        if self.context % sizes["sequence"]:
            yield (
                f"{sizes['sequence']} devices do not share out {self.context} positions: each "
                "holds the whole cache and does the same work."
            )
        if self.batch % rows:
            yield (
                f"{rows} devices share out {self.batch} rows: {-self.batch % rows} rows of padding "
                "are computed too."
            )
        everywhere = self.task == "train" or "logits" in self.taps
        if everywhere and self.tokens > 1:
            size = _bytes(self._logits())
            yield f"Logits at every position are {readable(size)} on each device."

    def _arguments(self) -> tuple[Any, ...]:
        tokens = self._whole((self.batch, self.tokens), np.int32)
        lengths = self._whole((self.batch,), np.int32)
        return self.leaves, self._cache(), tokens, lengths, self.taps

    def _cache(self) -> Any:
        c, rows = self.config, self.batch + -self.batch % parts("B", self.mesh)
        shape = (rows, self.context, c.num_key_value_heads, c.head_dim)
        place = sharding(CACHE_AXES, self.mesh, shape)
        one = jax.ShapeDtypeStruct(shape, self.dtype, sharding=place)
        each: Any = (one,) * c.num_hidden_layers
        rest: Any = self._whole((rows,), np.int32)
        return Cache(each, each, rest)

    def _weights(self) -> dict[str, Any]:
        return {name: self.leaves[i] for name, i in leaf_numbers(self.model).items()}

    def _optimizer_state(self, weights: dict[str, Any]) -> Any:
        def like(x: Any, weight: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=weight.sharding)

        state = jax.eval_shape(_ADAMW.init, weights)
        return optax.tree.map_params(
            _ADAMW,
            like,
            state,
            weights,
            transform_non_params=lambda x: self._whole(x.shape, x.dtype),
        )

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding("", self.mesh))


_ADAMW = optax.adamw(1e-5)


@functools.lru_cache(maxsize=8)
def _weights_by_kind(config: LlamaConfig) -> Mapping[tuple[tuple[int, ...], str], int]:
    """How many weights there are of each shape and axes."""
    slots = parameters(Model(config))
    return collections.Counter(
        (slot.get_value().shape, weight_axes(name)) for name, slot in slots.items()
    )


def _bytes(tree: Any) -> int:
    """What a device holds of arrays that say where their parts lie."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _devices(devices: str) -> tuple[Chip | None, int, Sequence[Any] | None]:
    """The chip, how many devices, and those to compile for."""
    if not isinstance(devices, str):
        raise FitError(
            f'devices is {devices!r}; it must be text such as "v5e:4x4", "h100:8" or "local", or '
            "None for the smallest that fit."
        )
    if devices in ("local", "cpu", "gpu", "tpu"):
        try:
            here = jax.devices() if devices == "local" else jax.devices(devices)
        except RuntimeError as error:
            raise FitError(f"{devices!r}: {error}") from None
        kind = here[0].device_kind.lower()
        chip = next((chip for name, chip in CHIPS.items() if name in kind), None)
        return chip, len(here), here
    name, _, shape = devices.partition(":")
    chip = CHIPS.get(name.lower())
    if chip is None:
        raise FitError(
            f"{devices!r}: no chip is called {name!r}. Known are {', '.join(CHIPS)}, as "
            '"v5e:4x4" or "h100:8", and "local".'
        )
    if not chip.tpu:
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", shape):
            raise FitError(f"{devices!r}: say how many, as {name}:8.")
        return chip, int(shape), None
    if shape not in chip.slices:
        raise FitError(
            f"{devices!r}: Google Cloud has no such slice. Known are "
            f"{', '.join(f'{name}:{each}' for each in chip.slices)}."
        )
    found = _topology(name.lower(), shape)
    return chip, len(found), found


@functools.lru_cache(maxsize=32)
def _topology(name: str, shape: str) -> Sequence[Any]:
    """The devices of a slice of TPUs that is not there."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ImportError(
            "What a TPU's compiler says of a program needs libtpu, and no TPU: "
            "pip install 'llama-jax[tpu]' (Linux on x86-64)."
        ) from None
    from jax.experimental import topologies

    one: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    on_tpu = jax.devices()[0].platform == "tpu"  # and the devices at hand are settled before
    with contextlib.nullcontext() if on_tpu else _environment(_NO_TPU):
        made = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", **one)
    return tuple(made.devices)


# Else libtpu asks a metadata server that only a TPU's machine has, logs that there is none, and
# lets one process in at a time.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets what is not set, for a while."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _chosen(
    step: Callable[[Mapping[str, int], None], _Step],
    config: LlamaConfig,
    count: int,
    batch: int,
    context: int,
    task: Task,
    memory: int,
) -> dict[str, int] | None:
    """The first mesh whose shapes leave a tenth of the memory free, else the one that needs least.

    None where there is no mesh on which all have work. Large `tensor` comes first, since it answers
    soonest. What is beyond the KV heads holds them, and their cache, several times: where that is
    too much, rows or positions are shared out.
    """
    heads = config.num_key_value_heads
    sizes = (config.num_attention_heads, config.intermediate_size, config.vocab_size)
    small = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    divisors = sorted({*small, *(count // n for n in small)}, reverse=True)
    tensors = [
        n
        for n in divisors
        if not any(size % n for size in sizes) and (heads % n == 0 or n % heads == 0)
    ]
    if task == "train":
        shared = [n for n in divisors if config.hidden_size % n == 0 and count // n in tensors]
        rows = next((n for n in shared if batch % n == 0), shared[0] if shared else None)
        shape = {"data": count} if rows is None else {"fsdp": rows, "tensor": count // rows}
        found = mesh_sizes(shape, config)
        return found if _all_work(found, batch, context) else None
    needed: dict[int, dict[str, int]] = {}
    for tensor in tensors:
        left = count // tensor
        other = "data" if batch % left == 0 else "sequence"
        found = mesh_sizes({"tensor": tensor, other: left}, config)
        if not _all_work(found, batch, context):
            continue
        size = sum(step(found, None).sizes().values())
        if size <= 0.9 * memory:
            return found
        needed.setdefault(size, found)
    return needed[min(needed)] if needed else None


def _smallest(
    step: Any, config: LlamaConfig, batch: int, context: int, task: Task
) -> Iterator[Suggestion]:
    """Of each kind the smallest slice whose shapes leave a tenth of the memory free."""
    for name, chip in CHIPS.items():
        memory = _memory(chip, 1)
        for shape in chip.slices:
            count = math.prod(map(int, shape.split("x"))) * chip.devices
            sizes = _chosen(step, config, count, batch, context, task, memory)
            if sizes is None:
                continue
            needed = sum(step(sizes, None).sizes().values())
            if needed <= 0.9 * memory:
                yield Suggestion(f"{name}:{shape}", count, sizes, needed, memory)
                break


def _memory(chip: Chip | None, count: int) -> int:
    if chip is not None:
        return int(chip.memory / chip.devices)
    memory = device_memory() or 0
    return memory // (count if jax.devices()[0].platform == "cpu" else 1)


_SIZES = re.compile(r"(\d+(?:\.\d+)?)([KMGT])\b")


def _said_sizes(text: str) -> list[int]:
    """Sizes in a compiler's message, as `17.12G`."""
    return [
        int(float(n) * 2 ** (10 * (1 + "KMGT".index(unit)))) for n, unit in _SIZES.findall(text)
    ]


_COLLECTIVE = re.compile(
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[subf]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")


def _collectives(program: str) -> tuple[Collective, ...]:
    """Counted in a compiled program's text; bytes are those of the results.

    >>> _collectives("%a = bf16[8,64]{1,0} all-reduce(%b), replica_groups={}")
    (Collective(kind='all-reduce', count=1, bytes=1024),)
    """
    counts: dict[str, list[int]] = collections.defaultdict(list)
    for result, kind, started in _COLLECTIVE.findall(program):
        arrays = [_array_bytes(*found) for found in _ARRAY.findall(result)]
        if started and kind != "all-reduce":  # (what it takes, what it gives, …)
            arrays = arrays[1:2]
        counts[kind].append(sum(arrays))
    return tuple(Collective(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(counts.items()))


def _array_bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def _estimate(
    chip: Chip | None,
    count: int,
    step: _Step,
    known: Mapping[str, int],
    sent: Sequence[Collective],
) -> dict[str, Any]:
    """The least time, by published rates: products or memory, then what is sent, one by one."""
    if chip is None:
        return {"seconds": math.nan, "bound": "no published rates", "source": ""}
    each = chip.devices
    compute = step.flops() / count / (chip.flops / each)
    # Training reads the weights three times and writes them once, and the moments once each way.
    # What is made on the way can be spent where it is made.
    passes = {"weights": 4, "optimizer": 2} if step.task == "train" else dict.fromkeys(known, 1)
    moved = sum(size * passes.get(name, 0) for name, size in known.items())
    memory = moved / (chip.bandwidth / each)
    # A ring sends a sum twice around; one direction has half of the published rate.
    twice = {"all-reduce": 2}
    links = sum(x.bytes * twice.get(x.kind, 1) for x in sent) / (chip.interconnect / each / 2)
    seconds = max(compute, memory) + links
    bound = max((compute, "products"), (memory, "memory"), (links, "links"))[1]
    return {
        "seconds": seconds,
        "compute": compute,
        "memory": memory,
        "links": links,
        "bound": f"an estimate, bound by {bound}",
        "source": chip.source,
    }


def _method(devices: str, chip: Chip | None, present: Any, made: _Compiled, task: Task) -> str:
    rates = f" Rates: {chip.source}" if chip is not None else ""
    if present is None:
        return (
            f"From shapes: no compiler for {devices} is here, so temporaries are left out"
            f"{', all but what is known of a training step' * (task == 'train')}.{rates}"
        )
    kind = "The TPU compiler's" if present[0].platform == "tpu" else "The local compiler's"
    return f"{kind} bytes, in {made.seconds:.0f} s.{rates}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(0.0123), _duration(2.5)
    ('12.3 ms', '2.50 s')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
