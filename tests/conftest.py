"""What all tests share."""

import os
import random

import pytest

# Before anything imports JAX: tests run on the CPU unless somebody says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are compiled in two thirds of the time, and differ in last bits alone; tests of these are
# marked `exact`. `make soak` runs all with what users' programs are compiled with.
FAST = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
# One CPU plays sixteen devices, so that meshes are tested in this process; JAX reads this once.
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=16".strip()

import jax  # noqa: E402 (after the flags)

from llama_jax.base import compilation_cache  # noqa: E402 (after the flags)

# What was compiled once is not compiled again, here and in the kernels that tests start.
if folder := compilation_cache.enable():
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules, which compute
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that are marked `exact` get the programs that users get."""
    fast = FAST and not item.get_closest_marker("exact")
    if fast != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", fast)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", type=int, help="run so many of the tests, drawn by --sample-seed")
    parser.addoption("--sample-seed", default="0", help="any text; another text draws others")


@pytest.hookimpl(trylast=True)  # of what -k and -m left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    size = config.getoption("--sample")
    if size is None or size >= len(items):
        return
    drawn = set(random.Random(config.getoption("--sample-seed")).sample(range(len(items)), size))
    config.hook.pytest_deselected(items=[x for i, x in enumerate(items) if i not in drawn])
    items[:] = [x for i, x in enumerate(items) if i in drawn]
