"""What is written takes its place whole or not at all, and what a kill leaves is cleared."""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from llama_jax.base import replacing
from llama_jax.base.replacing import as_path, replacing_file, replacing_folder, settle

MODULE = pathlib.Path(replacing.__file__)
LARGE = {"a.json", "b.bin", "c.bin", "folder"}


def ours(name):
    return name in LARGE | {"old.bin"}


def write(directory, text, names=("a.json", "b.bin", "c.bin")):
    with replacing_folder(directory, ours, ValueError) as new:
        for name in names:
            (new / name).write_text(text)
        (new / "folder").mkdir()
        (new / "folder" / "inside").write_text(text)


def content(directory):
    return {
        str(file.relative_to(directory)): file.read_text()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def whole(text):
    return dict.fromkeys(("a.json", "b.bin", "c.bin", "folder/inside"), text)


@pytest.fixture
def place(tmp_path):
    write(tmp_path / "place", "old", ("a.json", "b.bin", "old.bin"))
    (tmp_path / "place" / "mine").write_text("mine")
    return tmp_path / "place"


def test_a_folder_stays_the_same_folder(place, monkeypatch):
    number = place.stat().st_ino
    monkeypatch.chdir(place)
    write(".", "new")
    assert content(place) == {**whole("new"), "mine": "mine"}
    assert place.stat().st_ino == number and os.path.samefile(os.getcwd(), place)
    assert os.listdir(place.parent) == ["place"] and len(os.listdir(place)) == 5


def test_nothing_is_written_beside_a_folder_or_crosses_its_edge(place, monkeypatch):
    """As where it is mounted, or lies in a folder that is not writable."""
    rename, mkdir = os.rename, os.mkdir

    def inside(*paths):
        for path in paths:
            assert place in pathlib.Path(path).absolute().parents, path

    def checked_rename(source, target, **options):
        inside(source, target)
        rename(source, target, **options)

    def checked_mkdir(path, *arguments, **options):
        inside(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "rename", checked_rename)
    monkeypatch.setattr(os, "mkdir", checked_mkdir)
    monkeypatch.setattr(pathlib.Path, "rename", lambda self, to: checked_rename(self, to))
    monkeypatch.setattr(
        pathlib.Path, "mkdir", lambda self, *_, **options: self.exists() or checked_mkdir(self)
    )
    write(place, "new")
    assert content(place) == {**whole("new"), "mine": "mine"}


LOADED = f"""
import importlib.util, os, pathlib, sys
spec = importlib.util.spec_from_file_location("replacing", {str(MODULE)!r})
replacing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replacing)

def write(directory, text, names=("a.json", "b.bin", "c.bin")):
    ours = {LARGE | {"old.bin"}!r}.__contains__
    with replacing.replacing_folder(directory, ours, ValueError) as new:
        for name in names:
            (new / name).write_text(text)
        (new / "folder").mkdir()
        (new / "folder" / "inside").write_text(text)
"""


def run(script, *arguments):
    command = [sys.executable, "-c", LOADED + textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_volume_that_is_mounted_in_a_folder_that_is_read_only(tmp_path):
    place = tmp_path / "volume"
    place.mkdir()
    mounted = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path} "
        f"&& mount -t tmpfs tmpfs {place}"
    )
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mounted]).returncode:
        pytest.skip("nothing can be mounted here")
    script = f"""
place = pathlib.Path({str(place)!r})
for text in ("old", "new"):
    write(place, text)
print((place / "folder" / "inside").read_text(), sorted(os.listdir(place)))
"""
    command = f'{mounted} && exec "$0" -c "$1"'
    done = subprocess.run(
        [*unshare, command, sys.executable, LOADED + script], capture_output=True, text=True
    )
    assert done.stdout == "new ['a.json', 'b.bin', 'c.bin', 'folder']\n", done.stderr


DIES = """
# A process a step: each ends at its own call of what changes a name, as if it was killed there.
def child(number, place):
    calls = 0
    def dies(function):
        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return function(*arguments, **options)
        return counted
    for name in ("rename", "link", "unlink", "mkdir", "rmdir", "fsync", "write", "open"):
        setattr(os, name, dies(getattr(os, name)))
    pathlib.Path.rename = lambda self, to: os.rename(self, to)
    pathlib.Path.unlink = lambda self, missing_ok=False: os.unlink(self)
    pathlib.Path.mkdir = lambda self, *_, **options: self.exists() or os.mkdir(self)
    write(place, "new")
    os._exit(0)

root, first = pathlib.Path(sys.argv[1]), sys.argv[2] == "first"
for number in range(1, 1000):
    place = root / str(number) / "place"
    place.parent.mkdir()
    if not first:
        write(place, "old", ("a.json", "b.bin", "old.bin"))
    pid = os.fork()
    if not pid:
        child(number, place)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        break
    assert code == 9, code
print(number)
"""


@pytest.mark.parametrize("first", ["first", "second"])
def test_killed_at_any_step_it_is_the_old_or_the_new_and_nothing_is_left(tmp_path, first):
    done = run(DIES, tmp_path, first)
    steps = int(done.stdout or pytest.fail(done.stderr))
    assert steps > 10
    old = dict.fromkeys(("a.json", "b.bin", "folder/inside", "old.bin"), "old")
    found = []
    for number in range(1, steps + 1):
        place = tmp_path / str(number) / "place"
        settle(place)
        assert os.listdir(place.parent) in (["place"], [])
        if place.exists():
            assert content(place) in (whole("new"), old), number
            assert not [name for name in os.listdir(place) if replacing.is_stage(name)], number
        else:
            assert first == "first"
        found.append(place.exists() and content(place) == whole("new"))
    assert found == sorted(found) and found[-1] and not found[0], "once new, new at all later steps"


def test_what_a_process_is_still_writing_is_not_cleared(place):
    with replacing_folder(place, ours, ValueError) as new:
        (new / "a.json").write_text("first")
        settle(place)
        write(place, "second")
        assert (new / "a.json").exists() and content(place)["a.json"] == "second"
    assert content(place) == {"a.json": "first", "mine": "mine"}
    with replacing_file(place / "x.run", ValueError) as new:
        new.write_text("first")
        settle(place / "x.run")
        with replacing_file(place / "x.run", ValueError) as other:
            other.write_text("second")
        assert (place / "x.run").read_text() == "second"
    assert (place / "x.run").read_text() == "first"
    assert sorted(os.listdir(place)) == ["a.json", "mine", "x.run"]


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(300, marks=pytest.mark.soak)], ids=["few", "many"]
)
def test_many_who_write_to_one_place_leave_one_of_theirs(tmp_path, rounds):
    def writer(number):
        for turn in range(rounds):
            write(tmp_path / str(turn), str(number))
            with replacing_file(tmp_path / "file" / str(turn), ValueError) as new:
                new.write_text(str(number))

    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(writer, range(4)))
    for turn in range(rounds):
        found = content(tmp_path / str(turn))
        assert found in [whole(str(number)) for number in range(4)], found
    assert len(os.listdir(tmp_path)) == rounds + 1
    assert len(os.listdir(tmp_path / "file")) == rounds


def test_things_with_similar_names_are_nobodys_rest(place):
    for name in (".saving-notes", ".saving-0123456", ".place.saving-01234567x"):
        (place / name).mkdir()
        (place.parent / name).mkdir()
    (place / ".saving-01234567").mkdir()
    (place / ".saving-01234567" / "thesis.tex").write_text("years of work")
    settle(place)
    assert len(os.listdir(place)) == 5 + 4 and len(os.listdir(place.parent)) == 1 + 3


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "[",
        "[]",
        "[" * 100_000,
        '{"stage": 1, "names": [], "gone": []}',
        '{"stage": ".saving-01234567", "names": "ab", "gone": []}',
        '{"stage": ".saving-01234567", "names": [], "gone": ["../outside"]}',
        '{"stage": ".saving-01234567", "names": ["../outside"], "gone": []}',
        '{"stage": ".saving-01234567", "names": [], "gone": ["OUTSIDE"]}',
        '{"stage": "../outside", "names": ["secret"], "gone": []}',
        '{"stage": ".saving-01234567", "names": ["", ".", "..", "\\u0000"], "gone": []}',
        '{"stage": ".saving-01234567", "names": ["secret"], "gone": []}',
        '{"stage": ".saving-89abcdef", "names": ["secret"], "gone": []}',
    ],
)
def test_a_folder_from_a_stranger_moves_and_removes_nothing_outside(place, mark):
    outside = place.parent / "outside"
    (outside / "new").mkdir(parents=True)
    for name in ("secret", "lock", "new/secret"):
        (outside / name).write_text("mine")
    before = content(outside)
    (place / ".saving-now").write_text(mark.replace("OUTSIDE", str(outside)))
    (place / ".saving-01234567").symlink_to(outside)
    (place / ".saving-89abcdef").mkdir()
    (place / ".saving-89abcdef" / "new").symlink_to(outside)
    (place / ".saving-89abcdef" / "lock").write_text("")
    settle(place)
    assert content(outside) == before and not (place / "secret").exists()
    assert not (place / ".saving-now").exists() and not (place / ".saving-89abcdef").exists()


def test_where_there_are_no_locks_nothing_is_taken_for_left_over(place, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(replacing.fcntl, "flock", unsupported)
    with replacing_folder(place, ours, ValueError) as new:
        (new / "a.json").write_text("first")
        settle(place)
        assert (new / "a.json").exists()
    assert content(place) == {"a.json": "first", "mine": "mine"}


def test_a_mark_that_nobody_can_take_over_is_an_error_that_says_what_to_delete(place, monkeypatch):
    monkeypatch.setattr(replacing, "_PATIENCE", 0)
    with replacing_folder(place, ours, ValueError) as new:
        (new / "a.json").write_text("first")
        held = replacing._hold(place / ".saving-now")
        with pytest.raises(ValueError, match=r"by another process for.* delete .*\.saving"):
            write(place, "second")
        os.close(held)  # it has ended without a word about what is to be done
    assert content(place)["a.json"] == "first"


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "latest").symlink_to("a.txt")
    with replacing_file(tmp_path / "latest", ValueError) as new:
        new.write_text("new")
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, TypeError, "directory is None, of type NoneType"),
        (3, TypeError, "directory is 3, of type int"),
        (b"x", TypeError, "directory is b'x', of type bytes"),
        ("", ValueError, "directory is ''"),
        ("a\0b", ValueError, "names no file and no folder"),
    ],
)
def test_what_is_no_path_is_named_with_its_argument(given, error, says):
    with pytest.raises(error, match=says):
        as_path(given, "directory")


class Refused(ValueError):
    pass


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("folder", "folder is a folder; what is written is one file"),
        ("file/x", "file cannot be made: File exists"),
        ("file/x/y", "cannot be made: Not a directory"),
        ("loop/x", "cannot be written: .*(loop|levels)"),
        ("n" * 300, "cannot be written: File name too long"),
        ("pipe", "is a device or a pipe"),
    ],
)
def test_where_no_file_can_be_is_refused_in_the_callers_own_words(tmp_path, given, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Refused, match=says), replacing_file(tmp_path / given, Refused):
        pass
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_that_is_not_writable_is_named(tmp_path, monkeypatch):
    mkdir = pathlib.Path.mkdir

    def denied(self, *arguments, **options):
        if self.name.startswith("."):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", denied)
    for writes in (
        replacing_file(tmp_path / "x", Refused),
        replacing_folder(tmp_path, ours, Refused),
    ):
        with pytest.raises(Refused, match=f"Permission denied .{tmp_path}"), writes:
            pass


def test_what_belongs_to_somebody_else_is_named_and_stays(place, monkeypatch):
    rename, before = pathlib.Path.rename, content(place)

    def denied(self, to):
        if to == place / "b.bin":
            raise PermissionError(1, "Operation not permitted", str(self), None, str(to))
        return rename(self, to)

    monkeypatch.setattr(pathlib.Path, "rename", denied)
    refused = pytest.raises(Refused, match=r"place cannot be replaced: Operation .*\(b\.bin\)")
    with refused, replacing_folder(place, ours, Refused) as new:
        (new / "a.json").write_text("new")
        (new / "b.bin").write_text("new")
    assert content(place) == before
