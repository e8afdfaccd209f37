"""Prefill and decode of a random Llama of a preset's shape, transformers beside where installed.

    python -m benchmarks.inference --preset llama-3.2-1b --layers 4 --dtype bf16

Medians over a few repetitions, ours and theirs in turn, in one process. `--layers` cuts the depth;
tokens per second are then of the cut model.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from llama_jax import Llama, LlamaConfig
from llama_jax.dtypes import as_dtype
from llama_jax.generate import advance, prefill
from llama_jax.model import empty_cache, leaves_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    config = LlamaConfig.preset(args.preset)
    config = dataclasses.replace(config, num_hidden_layers=args.layers or config.num_hidden_layers)
    dtype = as_dtype(args.dtype).name
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, args.prompt))

    contestants = {"llama-jax": _ours(config, dtype, tokens, args.new)}
    theirs = _transformers(config, dtype, tokens, args.new)
    if theirs is not None:
        contestants["transformers"] = theirs
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(args.repeat + 1):
        for name, measure in contestants.items():
            seconds = measure()
            if turn:  # the first one compiles and warms up
                times[name].append(seconds)

    device = jax.devices()[0]
    print(f"{args.preset}, {config.num_hidden_layers} layers, {dtype}, on {device.device_kind}")
    print(f"| | prefill of {args.prompt} tokens | decode, batch 1 |")
    print("|---|---|---|")
    for name, measured in times.items():
        first, rest = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"| {name} | {first:.3f} s | {args.new / rest:.2f} tokens/s |")


def _ours(
    config: LlamaConfig, dtype: str, tokens: np.ndarray, new: int
) -> Callable[[], tuple[float, float]]:
    llama = Llama.random(config, dtype=dtype)
    leaves, structure = leaves_of(llama.model)
    lengths = np.full(1, tokens.shape[1], np.int32)
    one = np.ones(1, np.int32)

    def measure() -> tuple[float, float]:
        cache = empty_cache(config, 1, tokens.shape[1] + new, llama.model.dtype)
        start = time.perf_counter()
        logits, cache, _ = prefill(structure, leaves, cache, tokens, lengths, tokens.shape[1])
        logits.block_until_ready()
        middle = time.perf_counter()
        for _ in range(new):
            token = np.asarray(logits.argmax(-1))[:, None]
            logits, cache, _ = advance(structure, leaves, cache, token, one, {})
        logits.block_until_ready()
        return middle - start, time.perf_counter() - middle

    return measure


def _transformers(
    config: LlamaConfig, dtype: str, tokens: np.ndarray, new: int
) -> Callable[[], tuple[float, float]] | None:
    try:
        import torch
        import transformers
    except ImportError:
        return None
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_huggingface()))
    model = model.to(getattr(torch, dtype)).eval()
    prompt = torch.tensor(tokens)

    @torch.no_grad()
    def measure() -> tuple[float, float]:
        start = time.perf_counter()
        result = model(prompt, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(new):
            token = result.logits[:, -1:].argmax(-1)
            result = model(token, past_key_values=result.past_key_values, use_cache=True)
        return middle - start, time.perf_counter() - middle

    return measure


if __name__ == "__main__":
    main()
