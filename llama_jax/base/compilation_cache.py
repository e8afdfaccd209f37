"""Compiled programs that outlive the process: JAX's persistent compilation cache, in a folder of
the user's that is safe to keep it in.

What lies in it is machine code, so only its owner may enter the folder, and its name tells jaxlib's
version and the CPU: a program that was compiled for another CPU is loaded with an error message for
each, and may end the process (jax-ml/jax#38445). JAX writes an entry once and never looks at its
size: what is damaged, and what was not used for longest above `MOST_BYTES`, is taken out when the
cache is turned on.

As a script it prints the folder (`make lab` uses this); nothing else is imported for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import stat
import subprocess
import warnings
import zlib
from pathlib import Path

import platformdirs

__all__ = ["MOST_BYTES", "enable", "prepare"]

#: What the folder may hold when the cache is turned on.
MOST_BYTES = 2**30

_FOLDER, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
# Every program counts: a notebook compiles hundreds that take 20 ms each.
_LEAST_SECONDS = ("jax_persistent_cache_min_compile_time_secs", 0.0)
_JAX_LEAST_SECONDS = 1.0  # JAX's own default: another value was somebody's choice


def enable() -> Path | None:
    """Turns JAX's persistent compilation cache on, unless its settings are already the user's.

    Returns the folder; None where nothing was changed: `jax_compilation_cache_dir` is set,
    `jax_enable_compilation_cache` is off, or no folder is to be had that is the user's alone.

    >>> folder = enable()  # doctest: +SKIP
    """
    import jax

    if getattr(jax.config, _FOLDER) or not getattr(jax.config, _ENABLED):
        return None
    folder = prepare()
    if folder is not None:
        name, seconds = _LEAST_SECONDS
        if getattr(jax.config, name) == _JAX_LEAST_SECONDS:
            jax.config.update(name, seconds)
        jax.config.update(_FOLDER, str(folder))
    return folder


def prepare(root: Path | None = None, most_bytes: int = MOST_BYTES) -> Path | None:
    """The folder for this jaxlib and this CPU, made and tidied; None where it is not safe.

    root: instead of the user's folder for caches (`~/.cache/llama-jax` on Linux).
    """
    parent = Path(platformdirs.user_cache_dir("llama-jax")) if root is None else root
    folder = parent / "programs" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{_cpu()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _private(folder):
            warnings.warn(
                f"{folder} is not this user's alone, so compiled programs are not kept there. "
                "Remove it, or set JAX_COMPILATION_CACHE_DIR to a folder of your own.",
                stacklevel=2,
            )
            return None
        _tidy(folder, most_bytes)
    except OSError:  # a home that cannot be written to, a full disk
        return None
    return folder


def _private(folder: Path) -> bool:
    """Whether nobody else may write there: what lies there is run."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _tidy(folder: Path, most_bytes: int) -> None:
    """Takes out entries that are damaged, and those not used for longest above `most_bytes`."""
    looked = folder / ".looked-through"
    last = looked.stat().st_mtime if looked.exists() else 0.0
    entries = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies too
            found = path.stat()
            # JAX never writes an entry again, so a damaged one would be a warning for ever.
            if found.st_mtime >= last and not _whole(path):
                path.unlink()
            else:
                entries.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    looked.touch()
    held = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if held <= most_bytes:
            break
        path.unlink(missing_ok=True)
        held -= size


def _whole(path: Path) -> bool:
    """Whether an entry is as it was written. Other compressions than zlib's are left to JAX."""
    data = path.read_bytes()
    if data[:1] != b"\x78":
        return bool(data)
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def _cpu() -> str:
    """A short name for this CPU and what it can do, as the system sees them."""
    said = platform.machine()
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        kept = re.findall(
            r"^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|CPU \w+)\s*:.*$",
            first,
            re.MULTILINE,
        )
        said += "".join(kept)
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError):
            said += subprocess.run(command, capture_output=True, text=True).stdout
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


if __name__ == "__main__":
    print(prepare() or "")
