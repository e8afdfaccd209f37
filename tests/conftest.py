"""What all tests share."""

import os

# Before anything imports JAX: tests run on the CPU unless somebody says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One CPU plays sixteen devices, so that meshes are tested in this process; JAX reads this once.
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=16".strip()

from llama_jax.base import compilation_cache  # noqa: E402 (after the flags)

# What was compiled once is not compiled again, here and in the kernels that tests start.
if folder := compilation_cache.enable():
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
