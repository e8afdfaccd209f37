"""Programs on a mesh of CPU devices are launched one at a time; nothing else waits."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llama_jax.base import turns
from llama_jax.base.modes import jit

SCRIPT = """
import dataclasses, sys, threading
from llama_jax import Llama
from tests.tiny import GQA

count, times = map(int, sys.argv[1:])
config = dataclasses.replace(GQA, num_attention_heads=8, num_key_value_heads=4)
llama = Llama.random(config, mesh="tensor=4, data=2")

def work():
    for _ in range(times):
        llama.run([[1, 2, 3]] * 2, "resid_post")  # nobody waits for what comes out

work()
threads = [threading.Thread(target=work) for _ in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


@pytest.mark.parametrize(
    ("threads", "times"), [(8, 40), pytest.param(64, 100, marks=pytest.mark.soak)]
)
def test_threads_that_run_a_model_on_a_mesh_of_cpu_devices_do_not_end_the_process(threads, times):
    """XLA ends one whose programs wait for each other, so this is a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads), str(times)],
        capture_output=True,
        text=True,
        env={**environment, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout == "done\n", done.stderr[-2000:]


@pytest.fixture
def sharded():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return jax.device_put(np.arange(8.0), NamedSharding(mesh, PartitionSpec("x")))


def waits(call, seconds=60.0):
    """Whether a call is still at work so long into another thread's launch on a mesh."""
    thread = threading.Thread(target=call)
    with turns._LAUNCHED:
        thread.start()
        thread.join(seconds)
        waited = thread.is_alive()
    thread.join()
    return waited


def test_only_what_runs_on_several_cpu_devices_waits_for_others(sharded):
    total = jit(jnp.sum)
    total(sharded), total(np.arange(8.0))  # compiled
    assert waits(lambda: total(sharded), 0.3)
    assert not waits(lambda: total(np.arange(8.0)))
    assert not waits(lambda: total(jax.device_put(np.arange(8.0), jax.devices()[3])))
    assert not waits(lambda: total.lower(sharded))
    assert not waits(lambda: jax.make_jaxpr(total)(sharded))


def test_a_place_on_a_mesh_counts_as_what_lies_there(sharded):
    made = jit(lambda x, place: jax.lax.with_sharding_constraint(x * 2, place), static_argnums=1)
    made(np.arange(8.0), sharded.sharding)
    assert waits(lambda: made(np.arange(8.0), sharded.sharding), 0.3)


def test_on_one_device_nothing_is_looked_at(monkeypatch):
    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(turns, "_several_cpus", lambda: False)
    monkeypatch.setattr(turns, "_on_cpus", never)
    assert jit(jnp.sum)(np.ones(3)) == 3


def test_it_is_jits_function_under_its_own_name(sharded):
    @jit
    def double(x):
        """Twice x."""
        return 2 * x

    assert double.__name__ == "double" and double.__doc__ == "Twice x."
    assert double(sharded).sharding == sharded.sharding and double._cache_size() == 1
    assert jax.jit(lambda x: double(x))(sharded).tolist() == (2 * np.arange(8.0)).tolist()
