import jax
import pytest


@pytest.fixture(scope="module")
def many_devices():
    """Sixteen, and programs that are made fast: they are many, and running them takes no time."""
    if jax.device_count() < 16:
        pytest.skip(f"16 devices are needed, and there are {jax.device_count()}")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
