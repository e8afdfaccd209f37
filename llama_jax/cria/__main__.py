"""`python -m llama_jax.cria train` makes cria anew; `… evaluate` prints what it can do."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib

from llama_jax.cria import WEIGHTS, recipe


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llama_jax.cria", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="train cria; a training that was interrupted goes on where it was"
    )
    train.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("cria"))
    train.add_argument("--steps", type=int, default=recipe.Recipe.steps)
    evaluate = commands.add_parser("evaluate", help="print the table, and write evaluation.md")
    evaluate.add_argument("directory", type=pathlib.Path, nargs="?", default=WEIGHTS)
    given = parser.parse_args(arguments)
    if given.command == "train":
        wanted = dataclasses.replace(recipe.Recipe(), steps=given.steps)
        collections.deque(recipe.learn(given.directory, wanted), maxlen=0)
        print(f"The checkpoint is in {given.directory}. What it can do:\n")
    print(recipe.measure(given.directory).markdown())


if __name__ == "__main__":
    main()
