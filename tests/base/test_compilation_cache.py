import os
import stat
import subprocess
import sys
import zlib

import jax
import pytest

from llama_jax.base import compilation_cache as cache

PROGRAM = """
import sys
import jax
from llama_jax.base import compilation_cache

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
assert str(compilation_cache.enable()).startswith(sys.argv[1])
jax.jit(lambda x: x * 2 + 1)(1.0)
print(sum(name.endswith("/cache_hits") for name in events))
"""


def entry(folder, name, size=100, age=0):
    path = folder / f"{name}-cache"
    path.write_bytes(zlib.compress(os.urandom(size)))
    seconds = path.stat().st_mtime - age
    os.utime(path, (seconds, seconds))
    return path


def test_the_second_process_compiles_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "XLA_FLAGS": ""}
    hits = [
        subprocess.check_output([sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, text=True)
        for _ in range(2)
    ]
    assert int(hits[0]) == 0 and int(hits[1]) > 0


def test_only_its_owner_may_enter_the_folder(tmp_path):
    folder = cache.prepare(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.warns(UserWarning, match="not this user's alone"):
        assert cache.prepare(tmp_path) is None


def test_a_link_to_somewhere_else_is_not_taken(tmp_path):
    folder = cache.prepare(tmp_path)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="not this user's alone"):
        assert cache.prepare(tmp_path) is None


def test_another_cpu_or_jaxlib_has_a_folder_of_its_own(tmp_path, monkeypatch):
    folder = cache.prepare(tmp_path)
    monkeypatch.setattr(cache, "_cpu", lambda: "another")
    assert cache.prepare(tmp_path) != folder
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "9.9")
    assert cache.prepare(tmp_path).name == "jaxlib-9.9-another"


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert cache.prepare(tmp_path / "file") is None


def test_damaged_entries_are_taken_out(tmp_path):
    folder = cache.prepare(tmp_path)
    whole, cut, empty = (entry(folder, name) for name in ("whole", "cut", "empty"))
    cut.write_bytes(cut.read_bytes()[:-5])
    empty.write_bytes(b"")
    cache.prepare(tmp_path)
    assert whole.exists() and not cut.exists() and not empty.exists()


def test_what_was_not_used_for_longest_is_taken_out_above_the_cap(tmp_path):
    folder = cache.prepare(tmp_path)
    old, middle, new = (entry(folder, str(age), 10_000, age) for age in (300, 200, 100))
    used = old.stat().st_mtime + 1000
    os.utime(old, (used, old.stat().st_mtime))  # written first, read last
    cache.prepare(tmp_path, most_bytes=25_000)
    assert old.exists() and not middle.exists() and new.exists()


def test_a_setting_of_the_user_s_stays(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(cache, "prepare", lambda: pytest.fail("looked for a folder"))
    try:
        jax.config.update("jax_compilation_cache_dir", "/somewhere")
        assert cache.enable() is None
        assert jax.config.jax_compilation_cache_dir == "/somewhere"
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", False)
        assert cache.enable() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", before)
