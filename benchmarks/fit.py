"""What fits on which TPUs: a table of compiled programs, made without a TPU (needs libtpu).

    python -m benchmarks.fit > benchmarks/results/fit.md

Each row is compiled in a process of its own; all take about 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from importlib.metadata import version

ROWS = [
    # model, devices, task, batch, context
    ("llama-3.1-8b", "v5e:2x2", "decode", 8, 8192),
    ("llama-3.1-8b", "v5e:2x2", "prefill", 8, 8192),
    ("llama-3.1-8b", "v5e:2x4", "decode", 4, 131072),
    ("llama-3.1-8b", "v5e:2x4", "prefill", 2, 131072),
    ("llama-3.1-8b", "v6e:1x1", "decode", 8, 8192),
    ("llama-3.1-8b", "v5p:2x2x1", "decode", 8, 131072),
    ("llama-3.1-8b", "tpu7x:2x2x1", "decode", 16, 131072),
    ("llama-3.1-8b", "v5p:2x2x2", "train", 8, 8192),
    ("llama-3.1-70b", "v5e:4x4", "decode", 8, 8192),
    ("llama-3.1-70b", "v5e:4x4", "prefill", 4, 8192),
    ("llama-3.1-70b", "v5e:8x8", "decode", 4, 131072),
    ("llama-3.1-70b", "v6e:2x4", "decode", 8, 8192),
    ("llama-3.1-70b", "v6e:2x4", "prefill", 8, 8192),
    ("llama-3.1-70b", "v6e:4x4", "decode", 2, 131072),
    ("llama-3.1-70b", "v5p:2x2x2", "decode", 8, 131072),
    ("llama-3.1-70b", "v5p:2x2x2", "prefill", 4, 131072),
    ("llama-3.1-70b", "tpu7x:2x2x1", "decode", 8, 131072),
    ("llama-3.1-70b", "tpu7x:2x2x1", "prefill", 8, 8192),
    ("llama-3.1-405b", "v5e:8x8", "decode", 8, 8192),
    ("llama-3.1-405b", "v6e:4x8", "decode", 8, 8192),
    ("llama-3.1-405b", "v6e:8x8", "prefill", 4, 8192),
    ("llama-3.1-405b", "v5p:2x2x4", "decode", 8, 8192),
    ("llama-3.1-405b", "v5p:2x4x4", "decode", 8, 131072),
    ("llama-3.1-405b", "tpu7x:2x2x2", "decode", 2, 131072),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a compiling process gets
    args = parser.parse_args()
    if args.row:
        return print(_compiled(json.loads(args.row)))
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    print(f"# What fits: bf16, compiled by the TPU compiler ({versions})\n")
    print(f"{datetime.date.today()}, made by `python -m benchmarks.fit` on no TPU. All GiB are of")
    print(
        "one device. The time is the least that the chips' published rates allow, not measured.\n"
    )
    columns = "model, devices, task, mesh, weights, cache, temporaries, all of, fits, "
    columns += "collectives a layer, MiB sent, at least, compiled in"
    print(f"| {columns.replace(', ', ' | ')} |")
    print("|---" * 13 + "|", flush=True)
    for row in ROWS:
        command = [sys.executable, "-m", "benchmarks.fit", "--row", json.dumps(row)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {' | '.join(map(str, row))} | {done.stderr.splitlines()[-1]} |", flush=True)
        else:
            print(done.stdout.splitlines()[-1], flush=True)


def _compiled(row: list) -> str:
    import jax

    jax.config.update("jax_platforms", "cpu")
    from llama_jax import fit

    model, devices, task, batch, context = row
    report = fit(model, devices, task=task, batch=batch, context=context)

    def gib(name: str) -> str:
        return f"{report.breakdown.get(name, 0) / 2**30:.2f}"

    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1)
    kept = "weights" if task != "train" else "weights + optimizer"
    weights = report.breakdown["weights"] + report.breakdown.get("optimizer", 0)
    sent = ", ".join(f"{count:.2f} {kind}" for kind, count in report.per_layer.items())
    step = {"decode": "token", "prefill": "chunk", "train": "step"}[task]
    cells = [
        model.removeprefix("llama-3.1-").upper(),
        devices,
        f"{task}, {batch} x {context}",
        mesh or "one device",
        f"{weights / 2**30:.2f}{'' if kept == 'weights' else ' with AdamW'}",
        gib("cache"),
        gib("temporaries"),
        f"{report.bytes_per_device / 2**30:.2f} of {report.memory / 2**30:.0f}",
        "yes" if report.fits else "no",
        sent or "–",
        f"{sum(x.bytes for x in report.collectives) / 2**20:,.0f}",
        f"{1e3 * report.seconds:.1f} ms a {step}",
        f"{report.compile_seconds:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
