import jax
import pytest


@pytest.fixture(scope="module")
def many_devices():
    """Sixteen of them."""
    if jax.device_count() < 16:
        pytest.skip(f"16 devices are needed, and there are {jax.device_count()}")
