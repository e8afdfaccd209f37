"""What looking costs: a plain forward, captures and an edit, peers beside us where installed.

    python -m benchmarks.capture --layers 12 --hidden 512 --tokens 256

Medians over a few repetitions, all contestants in turn, in one process, on the same weights. Behind
each time stands its ratio to the same library's plain forward. transformers gives hidden states and
attentions with `output_hidden_states` and `output_attentions`, TransformerLens what
`run_with_cache` keeps, nnsight what is saved in a trace.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.peers import in_torch, in_transformer_lens, saved, small
from llama_jax import Ablate, Llama

ROWS = ("plain forward", "residual stream", "all patterns", "everything", "one head ablated")
Contestant = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    config = small(args.layers, args.hidden)
    llama = Llama.random(config, seed=0)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, args.tokens))
    contestants: dict[str, Contestant] = {"llama-jax": _ours(llama, tokens)}
    with saved(llama) as folder:
        for name, make in (
            ("transformers", _transformers),
            ("TransformerLens", _transformer_lens),
            ("nnsight", _nnsight),
        ):
            try:
                contestants[name] = make(folder, tokens)
            except ImportError as error:
                print(f"{name} is left out: {error}")

        times: dict[str, dict[str, list[float]]] = {n: {r: [] for r in ROWS} for n in contestants}
        for turn in range(args.repeat + 2):
            for row in ROWS:
                for name, contestant in contestants.items():
                    if row not in contestant:
                        continue
                    start = time.perf_counter()
                    contestant[row]()
                    if turn >= 2:  # the first ones compile and warm up
                        times[name][row].append(time.perf_counter() - start)

    parameters = config.parameter_count / 1e6
    print(
        f"{args.layers} layers, D {args.hidden}, {parameters:.0f} M parameters, f32, "
        f"{args.tokens} tokens, on {jax.devices()[0].device_kind}: milliseconds, x plain\n"
    )
    print(f"| | {' | '.join(contestants)} |")
    print(f"|---|{'---|' * len(contestants)}")
    for row in ROWS:
        cells = []
        for name in contestants:
            measured, plain = times[name][row], times[name][ROWS[0]]
            if not measured:
                cells.append("–")
                continue
            # Of each turn the ratio to the plain forward just before: the machine is noisy.
            ratio = statistics.median(a / b for a, b in zip(measured, plain, strict=True))
            cells.append(f"{1000 * statistics.median(measured):.1f} ({ratio:.2f} x)")
        print(f"| {row} | {' | '.join(cells)} |")


def _ours(llama: Llama, tokens: np.ndarray) -> Contestant:
    def run(**options: Any) -> Callable[[], Any]:
        def once() -> None:
            result = llama.run(tokens, **options)
            jax.block_until_ready((result.logits, dict(result.captured)))

        return once

    return {
        "plain forward": run(),
        "residual stream": run(capture="resid_post"),
        "all patterns": run(capture="pattern"),
        "everything": run(capture="*"),
        "one head ablated": run(edits=Ablate(("z", 1), heads=[2])),
    }


def _transformers(folder: str, tokens: np.ndarray) -> Contestant:
    import torch

    model, given = in_torch(folder), torch.tensor(tokens)
    size = model.config.head_dim

    def run(**options: Any) -> Callable[[], Any]:
        def once() -> None:
            with torch.no_grad():
                model(given, use_cache=False, **options)

        return once

    def silence(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].clone()
        z[..., 2 * size : 3 * size] = 0
        return (z, *args[1:])

    def ablated() -> None:
        handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(silence)
        run()()
        handle.remove()

    return {
        "plain forward": run(),
        "residual stream": run(output_hidden_states=True),
        "all patterns": run(output_attentions=True),
        "one head ablated": ablated,
    }


def _transformer_lens(folder: str, tokens: np.ndarray) -> Contestant:
    import torch

    model = in_transformer_lens(folder)
    given = torch.tensor(tokens)

    def cached(wanted: Callable[[str], bool] | None) -> Callable[[], Any]:
        def once() -> None:
            with torch.no_grad():
                model.run_with_cache(given, names_filter=wanted)

        return once

    def silence(z: Any, hook: Any) -> Any:
        z[:, :, 2] = 0
        return z

    def plain() -> None:
        with torch.no_grad():
            model(given)

    def ablated() -> None:
        with torch.no_grad():
            model.run_with_hooks(given, fwd_hooks=[("blocks.1.attn.hook_z", silence)])

    return {
        "plain forward": plain,
        "residual stream": cached(lambda name: name.endswith("hook_resid_post")),
        "all patterns": cached(lambda name: name.endswith("hook_pattern")),
        "everything": cached(None),
        "one head ablated": ablated,
    }


def _nnsight(folder: str, tokens: np.ndarray) -> Contestant:
    import torch
    import transformers
    from nnsight import NNsight

    model, given = NNsight(in_torch(folder)), torch.tensor(tokens)
    size = transformers.AutoConfig.from_pretrained(folder).head_dim

    def plain() -> None:
        with torch.no_grad(), model.trace(given):
            model.output.save()

    def stream() -> None:
        with torch.no_grad(), model.trace(given):
            for layer in model.model.layers:
                layer.output.save()

    def ablated() -> None:
        with torch.no_grad(), model.trace(given):
            model.model.layers[1].self_attn.o_proj.input[..., 2 * size : 3 * size] = 0
            model.output.save()

    return {"plain forward": plain, "residual stream": stream, "one head ablated": ablated}


if __name__ == "__main__":
    main()
