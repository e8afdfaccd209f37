"""`python -m benchmarks` runs every benchmark with its default settings."""

import subprocess
import sys

for name in ("inference", "capture", "sweep", "load", "views"):
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
