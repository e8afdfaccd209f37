"""Time and memory of opening a checkpoint, with Orbax and transformers beside us.

    python -m benchmarks.load --gib 1.2 --repeat 5

The checkpoint is Llama 3.2 1B in random bfloat16, with as many layers as the size asks for, and
lies in the page cache. Each measurement is a process of its own, in turn. The best time counts,
against the plain read of as many bytes as the format's own files have (Meta's hold a tied head
twice), and the worst peak of anonymous memory (RssAnon, Linux) above what the process had before.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.checkpoint import huggingface, meta, orbax
from llama_jax.config import LlamaConfig, RopeScaling
from llama_jax.model import Model, parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.2, help="size of the file")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a measuring process gets
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(_measure(*args.one)))
    rows = [(name, dtype) for name in CONTESTANTS for dtype in ("bfloat16", "float32")]
    rows.remove(("plain read", "float32"))
    results: dict[tuple[str, str], list[tuple[float, int]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        _make(folder, args.gib)
        nbytes = sum(info.nbytes for info in huggingface.inspect(folder).values())
        files = {name: _size(pathlib.Path(folder, PLACES.get(name, ""))) for name, _ in rows}
        for _ in range(args.repeat):
            for row in rows:
                command = [sys.executable, "-m", "benchmarks.load", "--one", *row, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                results[row].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{nbytes / 1e9:.2f} GB in bfloat16, best of {args.repeat}\n")
    print("| | dtype | GB of files | s | of plain read | anonymous peak | of the weights |")
    print("|---" * 7 + "|")
    plain = files["plain read"] / min(seconds for seconds, _ in results[rows[0]])
    for (name, dtype), each in results.items():
        seconds, peak = min(s for s, _ in each), max(p for _, p in each)
        weights = nbytes * (2 if dtype == "float32" else 1)
        print(
            f"| {name} | {dtype} | {files[name] / 1e9:.2f} | {seconds:.2f} "
            f"| {files[name] / seconds / plain:.0%} | {peak / 2**30:.2f} GiB "
            f"| {peak / weights:.2f} |"
        )


def _size(folder: pathlib.Path) -> int:
    """Bytes of the weights' files: one format's, not those in folders beside it."""
    deep = folder.name == PLACES["llama-jax, Orbax"]
    return sum(file.stat().st_size for file in folder.glob("**/*" if deep else "*.[sp]*"))


def _make(folder: str, gib: float) -> None:
    layers = max(1, round((gib * 2**30 - 525e6) / 122e6))  # the embedding's bytes and a layer's
    preset = LlamaConfig.preset("llama-3.2-1b")
    # Meta's format has one scaling for the dimensions of each model, and 8 for all others.
    scaling = preset.rope_scaling if layers == preset.num_hidden_layers else RopeScaling(8.0)
    config = dataclasses.replace(preset, num_hidden_layers=layers, rope_scaling=scaling)
    model = Model(config)
    draw = np.random.default_rng(0)
    for slot in parameters(model).values():
        bits = draw.integers(0, 2**14, slot.get_value().shape, np.uint16)
        slot.set_value(jnp.asarray(bits.view(jnp.bfloat16)))
    huggingface.save(folder, model, max_shard_bytes=2**62)
    orbax.save(pathlib.Path(folder, "orbax"), model)
    if importlib.util.find_spec("torch"):
        meta.save(pathlib.Path(folder, "meta"), model)


Load = Callable[[], object]  # what is measured; its maker imports what it needs before


def _plain_read(folder: pathlib.Path, dtype: str) -> Load:
    return lambda: np.fromfile(folder / "model.safetensors", np.uint8)


def _ours(folder: pathlib.Path, dtype: str) -> Load:
    model = Model(LlamaConfig.from_huggingface(huggingface.read_config(folder)))
    return lambda: huggingface.load(folder, model, dtype, progress=False)


def _ours_orbax(folder: pathlib.Path, dtype: str) -> Load:
    importlib.import_module("orbax.checkpoint")  # not what is measured

    model = Model(LlamaConfig.from_huggingface(huggingface.read_config(folder)))
    return lambda: orbax.load(folder / "orbax", model, dtype)


def _ours_meta(folder: pathlib.Path, dtype: str) -> Load:
    importlib.import_module("torch")

    model = Model(LlamaConfig.from_huggingface(huggingface.read_config(folder)))

    def load() -> None:
        ranks = meta.inspect(folder / "meta")
        meta.load(folder / "meta", model, ranks, dtype, progress=False)

    return load


def _orbax(folder: pathlib.Path, dtype: str) -> Load:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def load() -> object:
        with context:
            found = ocp.metadata(folder).metadata.items()
            shapes = {n: jax.ShapeDtypeStruct(t.shape, dtype, sharding=here) for n, t in found}
            return jax.block_until_ready(ocp.load(folder, shapes))

    return load


def _transformers(folder: pathlib.Path, dtype: str) -> Load:
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    def load() -> object:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        for weight in model.parameters():  # it maps the file: what is as stored is read when used
            weight.detach().view(torch.uint8).flatten()[::4096].sum()
        return model

    return load


# Where each lies in the folder, other than in it.
PLACES = {"llama-jax, Orbax": "orbax", "llama-jax, Meta": "meta"}
CONTESTANTS = {
    "plain read": _plain_read,
    "llama-jax": _ours,
    "llama-jax, Orbax": _ours_orbax,
    "Orbax v1, all at once": _orbax,
}
if importlib.util.find_spec("torch"):
    CONTESTANTS["llama-jax, Meta"] = _ours_meta
if importlib.util.find_spec("transformers"):
    CONTESTANTS["transformers"] = _transformers


def _measure(contestant: str, dtype: str, folder: str) -> tuple[float, int]:
    load = CONTESTANTS[contestant](pathlib.Path(folder), dtype)
    jnp.zeros(1).block_until_ready()
    size = pathlib.Path(folder, "model.safetensors").stat().st_size
    np.ones(4 * size, np.uint8)  # a virtual machine gets memory from its host at first touch
    seen = [_anonymous()]

    def watch() -> None:
        while time.sleep(0.002) is None:
            seen.append(_anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    held = load()  # noqa: F841
    seconds = time.perf_counter() - start
    time.sleep(0.01)  # one more look at what it holds
    return seconds, max(seen) - seen[0]


def _anonymous() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
