"""A patching sweep over layers and positions, beside TransformerLens and full forward passes.

    python -m benchmarks.sweep --layers 12 --hidden 512 --tokens 64

The residual stream before each layer at each position, 37 M parameters, f32. `unlike` prompts share
no token: every site is computed. `like` ones differ in one token in the middle, as in most studies.
Each contestant's numbers are compared with those of the full passes.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.peers import in_transformer_lens, saved, small
from llama_jax import Llama, Patch
from llama_jax.analysis import logit_difference, patch_sweep

A, B = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    llama = Llama.random(small(args.layers, args.hidden), seed=0)
    rng = np.random.default_rng(0)
    clean, corrupted = rng.integers(0, llama.config.vocab_size, (2, 1, args.tokens))
    alike = clean.copy()
    alike[0, args.tokens // 2] = corrupted[0, args.tokens // 2]

    with saved(llama) as folder:
        contestants: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "full passes": functools.partial(_full_passes, llama),
            "llama-jax": functools.partial(_ours, llama),
        }
        try:
            model = in_transformer_lens(folder)
            contestants["TransformerLens"] = functools.partial(_transformer_lens, model)
        except ImportError as error:
            print(f"TransformerLens is left out: {error}")
        print(
            f"{args.layers} layers, D {args.hidden}, {llama.config.parameter_count / 1e6:.0f} M "
            f"parameters, f32, {args.tokens} tokens, on {jax.devices()[0].device_kind}: seconds\n"
        )
        print("| prompts | contestant | first | again, median | x TransformerLens | difference |")
        print("|---|---|---|---|---|---|")
        for name, other in (("unlike", corrupted), ("like", alike)):
            _measure(name, contestants, clean, other, args.repeat)


def _measure(
    prompts: str,
    contestants: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    clean: np.ndarray,
    corrupted: np.ndarray,
    repeat: int,
) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    values: dict[str, np.ndarray] = {}
    for turn in range(repeat + 1):
        for name, contestant in contestants.items():
            if turn > 1 and name == "full passes":
                continue
            start = time.perf_counter()
            values[name] = contestant(clean, corrupted)
            times[name].append(time.perf_counter() - start)
    truth = values["full passes"]
    peer = times.get("TransformerLens")
    for name, (first, *again) in times.items():
        ratio = f"{statistics.median(peer[1:]) / statistics.median(again):.1f}" if peer else "–"
        error = np.abs(values[name] - truth).max() / np.ptp(truth)
        print(
            f"| {prompts} | {name} | {first:.2f} | {statistics.median(again):.2f} | {ratio} | "
            f"{error:.0e} of the range |",
            flush=True,
        )


def _ours(llama: Llama, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    metric = logit_difference(A, B)
    return np.asarray(patch_sweep(llama, clean, corrupted, point="resid_pre", metric=metric).values)


def _full_passes(llama: Llama, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    metric, donor = logit_difference(A, B), llama.run(clean, "resid_pre", logits="last")
    found = np.zeros((llama.config.num_hidden_layers, clean.shape[1]))
    for layer, position in np.ndindex(*found.shape):
        edit = Patch(("resid_pre", layer), donor, positions=[position])
        run = llama.run(corrupted, edits=edit, logits="last")
        found[layer, position] = metric(run.logits[:, 0])[0]
    return found


def _transformer_lens(model: object, clean: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    import torch
    from transformer_lens import patching

    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor(clean))  # type: ignore[attr-defined]
        found = patching.get_act_patch_resid_pre(
            model, torch.tensor(corrupted), cache, lambda x: x[0, -1, A] - x[0, -1, B]
        )
    return np.asarray(found)


if __name__ == "__main__":
    main()
