"""Prints the Python (3.11 or newer) whose minor version is farthest from this one's.

Looks on the path and where pyenv keeps its versions. Exits with 1 where there is no other.
"""

import os
import pathlib
import shutil
import subprocess
import sys

NEWEST = 20  # python3.20 is far away
SAY = "import sys; print(sys.version_info[1])"


def candidates():
    for minor in range(11, NEWEST):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    root = pathlib.Path(os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv")
    yield from map(str, sorted(root.glob("versions/3.*/bin/python3")))


def minor_of(path):
    """Its minor version, or None where it does not start: pyenv's names are often of none."""
    said = subprocess.run([path, "-c", SAY], capture_output=True, text=True)
    return int(said.stdout) if said.returncode == 0 else None


own = sys.version_info[1]
found = [(abs(minor - own), path) for path in candidates() if (minor := minor_of(path)) is not None]
found = [(distance, path) for distance, path in found if distance and minor_of(path) >= 11]
if not found:
    sys.exit(1)
print(max(found)[1])
