"""What all tests share."""

import os

# Before anything imports JAX: tests run on the CPU unless somebody says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
