"""What is being written when its process is killed leaves what was there before whole."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llama_jax import Llama, Run
from llama_jax.model import parameters
from tests.tiny import GQA

WRITER = """
import itertools, sys
import jax.numpy as jnp
from llama_jax import Llama
from llama_jax.model import parameters
from tests.tiny import GQA

place, kind = sys.argv[1:]
llama = Llama.random(GQA)
for number in itertools.count(1):
    for slot in parameters(llama.model).values():
        slot.set_value(jnp.full_like(slot.get_value(), number))
    if kind == "run":
        llama.run([[number % 90] * 40], "*").save(place)
    else:
        llama.save(place, format=kind)
    print(number, flush=True)
"""


KEPT = ("huggingface", 0)  # one that is not left to `make soak`


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(
            kind, seed, marks=() if (kind, seed) == ("huggingface", 0) else pytest.mark.soak
        )
        for kind in ("huggingface", "orbax", "run")
        for seed in range(8)
    ],
)
def test_a_kill_at_a_random_moment_leaves_a_whole_one(tmp_path, kind, seed):
    place = tmp_path / "saved"
    command = [sys.executable, "-c", WRITER, str(place), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"  # one is there, the next is being written
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    said = [1, *map(int, process.communicate()[0].split())]
    if kind == "run":
        run = Run.load(place)
        numbers = {int(run.tokens[0, 0])}
    else:
        llama = Llama.from_pretrained(place)
        slots = parameters(llama.model).values()
        numbers = {number for slot in slots for number in np.unique(slot.get_value()).tolist()}
    # The last one that was said to be written, or the one behind it.
    assert len(numbers) == 1 and numbers <= {said[-1], said[-1] + 1}
    # Opening it took out what the killed process left.
    assert os.listdir(tmp_path) == ["saved"]
    assert kind == "run" or not [name for name in os.listdir(place) if name.startswith(".")]


WRITERS = """
import sys
from llama_jax import Llama
from tests.tiny import GQA

place, seed, turns = sys.argv[1], *map(int, sys.argv[2:])
llama = Llama.random(GQA, seed=seed)
for turn in range(turns):
    llama.save(place, format="huggingface")
"""


@pytest.mark.soak
def test_two_processes_that_save_to_one_folder_leave_the_checkpoint_of_one(tmp_path):
    place = tmp_path / "saved"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITERS, str(place), str(seed), "200"])
        for seed in (1, 2)
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = parameters(Llama.from_pretrained(place).model)
    expected = [parameters(Llama.random(GQA, seed=seed).model) for seed in (1, 2)]
    same = [
        all(
            np.array_equal(array.get_value(), one[name].get_value())
            for name, array in found.items()
        )
        for one in expected
    ]
    assert sum(same) == 1 and os.listdir(tmp_path) == ["saved"]
