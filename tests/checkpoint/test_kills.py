"""What is being written when its process is killed leaves what was there before whole."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from llama_jax import Llama, Run
from llama_jax.model import parameters

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


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["huggingface", "orbax", "run"])
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
