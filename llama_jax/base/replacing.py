"""Writing that takes the place of what was there whole or not at all.

What is written lies in a hidden folder, the stage, until it is whole: beside a file, beside a
folder that is not there yet, inside one that is. So a folder stays the same folder, whoever stands
in it and whatever is mounted there; nothing is renamed from one file system to another.

A folder's entries are put in place one by one. Before the first a mark is set, which says what is
to be done: whoever comes after a killed process does the rest. Stages and marks are locked while
their process lives (`flock`), so that what is left over is told from what is being written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: what is left over stays
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "as_path",
    "claim",
    "is_stage",
    "make_folder",
    "replacing_file",
    "replacing_folder",
    "settle",
]

_MARK = ".saving-now"
_STAGE = re.compile(r"\.(?:(?P<of>.+)\.)?saving-[0-9a-f]{8}")
_LOCK, _NEW, _OLD = "lock", "new", "old"  # what a stage holds
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PATIENCE = 60.0  # seconds for another process to put its files in place

Error = Callable[[str], Exception]


def as_path(given: Any, name: str = "path") -> pathlib.Path:
    """A path that a user gave, with `~` for the home.

    Raises `TypeError` for what is neither text nor a path, `ValueError` for text that is no path;
    both name the argument.

    >>> as_path("runs/a.run").name
    'a.run'
    """
    if isinstance(given, bytes) or not isinstance(given, str | os.PathLike):
        raise TypeError(
            f"{name} is {given!r}, of type {type(given).__name__}; it must be text or a path."
        )
    text = os.fspath(given)
    if not isinstance(text, str):
        raise TypeError(f"{name} is {given!r}, a path of bytes; it must be one of text.")
    if not text.strip() or "\0" in text:
        raise ValueError(f"{name} is {text!r}, which names no file and no folder.")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:  # ~nobody
        return pathlib.Path(text)


@contextlib.contextmanager
def replacing_file(path: Any, error: Error, make: bool = True) -> Iterator[pathlib.Path]:
    """Yields where to write a file that takes the place of `path` when the block ends well.

    Raises what `error` makes of a message where there can be no such file: its folder is missing
    (unless `make`) or not writable, or something else has that name. A link stays a link.
    """
    path = _resolved(as_path(path), error)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise error(f"{path} is {kind}; what is written is one file. Give a name for it.")
    make_folder(path.parent, error, make)
    with _staged(path.parent, path.name, path, error) as stage:
        yield stage / _NEW / path.name
        new = stage / _NEW / path.name
        shutil.copymode(stage / _LOCK, new)  # which the umask gave, whoever wrote the file
        _flush(new)
        with _allowed(path, error):
            new.replace(path)


@contextlib.contextmanager
def replacing_folder(
    directory: Any, ours: Callable[[str], bool], error: Error
) -> Iterator[pathlib.Path]:
    """Yields a new, empty folder whose entries are those of `directory` when the block ends well.

    After an error or an interrupt, also in the last step, `directory` is what it was. Its other
    entries stay, but those that are `ours` by their name: they are gone. Raises what `error` makes
    of a message where `directory` cannot be written to.
    """
    directory = _resolved(as_path(directory), error)
    if directory.exists() and not directory.is_dir():
        raise error(f"{directory} is a file; what is written is a folder.")
    there = directory.exists()
    make_folder(directory.parent, error)
    parent, of = (directory, "") if there else (directory.parent, directory.name)
    with _staged(parent, of, directory, error) as stage:
        yield stage / _NEW
        for file in (stage / _NEW).rglob("*"):
            if file.is_file():
                _flush(file)
        if there or not _renamed(stage / _NEW, directory):
            _merge(stage, directory, ours, error)


def settle(path: Any) -> None:
    """Clears what killed processes left of writing to `path`, a file or a folder.

    Entries that were being put in place are put there; what was not whole is taken out. What
    belongs to a process that lives stays, and entries that it is putting in place are waited for.
    Nothing is done where that is not allowed.
    """
    with contextlib.suppress(OSError, RuntimeError):
        path = as_path(path).resolve()
        until = time.monotonic() + _PATIENCE
        while not _recover(path) and time.monotonic() < until:
            pass
        for folder, of in ((path.parent, path.name), (path, None)):
            for name in os.listdir(folder) if folder.is_dir() else ():
                match = _STAGE.fullmatch(name)
                if match and match["of"] == of and _is_folder(folder / name):
                    with contextlib.suppress(OSError):
                        _clear(folder / name, path / _MARK)


def make_folder(folder: pathlib.Path, error: Error, make: bool = True) -> None:
    """Makes a folder and those above it, or raises what `error` makes of why it is not there."""
    if not make and not folder.exists():
        raise error(f"There is no folder {folder} to write to. Make it, or choose another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise error(f"The folder {folder} cannot be made: {_said(problem)}.") from None


def claim(folder: pathlib.Path) -> int | None:
    """A lock on a folder, as a file to be closed; None where somebody has it, or there are none."""
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    if _lock(held):
        return held
    os.close(held)
    return None


def is_stage(name: str) -> bool:
    """Whether an entry of a folder is of something that is being written.

    >>> is_stage(".saving-01234567"), is_stage(".saving.md")
    (True, False)
    """
    return name == _MARK or _STAGE.fullmatch(name) is not None


def _resolved(path: pathlib.Path, error: Error) -> pathlib.Path:
    try:
        path = path.resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)  # newer Pythons' pathlib passes a loop over
    except (OSError, RuntimeError) as problem:  # a loop of links, a name that is too long
        raise error(f"{path} cannot be written: {_said(problem)}.") from None
    return path


def _said(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)


@contextlib.contextmanager
def _allowed(place: pathlib.Path, error: Error) -> Iterator[None]:
    try:
        yield
    except PermissionError as problem:  # somebody else's, in a folder that all may write to
        whose = pathlib.Path(problem.filename or place).name
        raise error(f"{place} cannot be replaced: {_said(problem)} ({whose}).") from None


# Stages


@contextlib.contextmanager
def _staged(
    parent: pathlib.Path, of: str, place: pathlib.Path, error: Error
) -> Iterator[pathlib.Path]:
    """A locked folder in `parent` with an empty one in it, gone when the block ends."""
    settle(place)
    try:
        stage, lock = _new_stage(parent, of)
    except OSError as problem:
        raise error(
            f"{place} cannot be written: {_said(problem)} ({parent}). Is that folder yours? Choose "
            "another place, or make it writable."
        ) from None
    try:
        yield stage
    finally:
        _remove_stage(stage)
        os.close(lock)


def _new_stage(parent: pathlib.Path, of: str) -> tuple[pathlib.Path, int]:
    while True:
        stage = parent / f".{of}{'.' if of else ''}saving-{uuid.uuid4().hex[:8]}"
        stage.mkdir()
        try:
            lock = _hold(stage / _LOCK)
        except FileNotFoundError:  # somebody took it for left over before it was locked
            continue
        if lock is not None:
            (stage / _NEW).mkdir()
            return stage, lock


def _clear(stage: pathlib.Path, mark: pathlib.Path) -> None:
    """Takes out a stage whose process has ended, unless a mark may still name it."""
    try:
        lock = os.open(stage / _LOCK, os.O_RDWR | _NO_LINK)
    except FileNotFoundError:
        stage.rmdir()  # killed as it began, and empty; else an error, and it stays
        return
    try:
        if _lock(lock) and not os.path.lexists(mark):
            _remove_stage(stage)
    finally:
        os.close(lock)


def _remove_stage(stage: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        for entry in stage.iterdir():
            if entry.name != _LOCK:
                _remove(entry)
        (stage / _LOCK).unlink()  # the last: what has one can be cleared
        stage.rmdir()


def _hold(path: pathlib.Path) -> int | None:
    """Makes a file that is locked as long as it is open; None where somebody was faster.

    Where the file system knows no locks it is not locked, and nobody takes it for left over.
    """
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if _lock(held) is not False and _is_at(path, held):
        return held
    os.close(held)
    return None


def _is_at(path: pathlib.Path, file: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _lock(file: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


# Putting entries in place


def _renamed(new: pathlib.Path, directory: pathlib.Path) -> bool:
    """Puts a new folder where none was. False where there is one now, or folders stay where they
    are, as on some mounted stores."""
    try:
        new.rename(directory)
    except OSError:
        directory.mkdir(exist_ok=True)
        return False
    return True


def _merge(
    stage: pathlib.Path, directory: pathlib.Path, ours: Callable[[str], bool], error: Error
) -> None:
    """Puts the entries of a stage in place, all or none."""
    mark, held = directory / _MARK, _marked(directory, error)
    try:
        names = [entry.name for entry in (stage / _NEW).iterdir()]
        gone = [n for n in sorted(os.listdir(directory)) if ours(n) and n not in names]
        plan = {"stage": stage.name, "names": names, "gone": gone}
        os.write(held, json.dumps(plan).encode())
        os.fsync(held)
        try:
            with _allowed(directory, error):
                _put(stage, directory, names, gone)
        except BaseException:
            _undo(stage, directory, names, gone)
            raise
        finally:
            mark.unlink()
    finally:
        os.close(held)


def _marked(directory: pathlib.Path, error: Error) -> int:
    """Sets the mark that one process at a time can set."""
    until = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(FileExistsError):
            held = _hold(directory / _MARK)
            if held is not None:
                return held
        if not _recover(directory) and time.monotonic() > until:
            raise error(
                f"{directory} has been written by another process for {_PATIENCE:.0f} s. If there "
                f"is none, delete {directory / _MARK}, and what it names."
            )


def _recover(directory: pathlib.Path) -> bool:
    """Does the rest of what a killed process was putting in place, or waits a little for one that
    lives. Whether nothing is left to do."""
    try:
        mark = os.open(directory / _MARK, os.O_RDWR | _NO_LINK)
    except OSError:
        return True
    try:
        if not _lock(mark):
            time.sleep(0.01)
            return False
        if not _is_at(directory / _MARK, mark):  # that process has just done it
            return True
        plan = _plan(directory, os.read(mark, os.fstat(mark).st_size))
        if plan is not None:
            _put(*plan)
        (directory / _MARK).unlink()
    finally:
        os.close(mark)
    return True


def _plan(
    directory: pathlib.Path, said: bytes
) -> tuple[pathlib.Path, pathlib.Path, list[str], list[str]] | None:
    """What a mark says is to be done; None for one that was not finished: nothing was moved then.

    A folder comes from anywhere, so a mark in it may name nothing but its own entries.
    """
    try:
        plan = json.loads(said)
        stage, names, gone = plan["stage"], plan["names"], plan["gone"]
        match = _STAGE.fullmatch(stage)
        if not match or any(
            name != os.path.basename(name) or name == ".." for name in names + gone
        ):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    parent = directory if match["of"] is None else directory.parent
    folders = [parent / stage, parent / stage / _NEW]
    return (parent / stage, directory, names, gone) if all(map(_is_folder, folders)) else None


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "\0" not in name and os.path.basename(name) == name


def _put(
    stage: pathlib.Path, directory: pathlib.Path, names: Collection[str], gone: Collection[str]
) -> None:
    """Moves what is new in and what is old out. Done again, it does what is left to do."""
    (stage / _OLD).mkdir(exist_ok=True)
    if not _is_folder(stage / _OLD):
        return
    for name in names:
        new, place, old = stage / _NEW / name, directory / name, stage / _OLD / name
        if not os.path.lexists(new):
            continue
        if os.path.lexists(place):
            folder = _is_folder(new) or _is_folder(place)
            if folder or not _linked(place, old):
                _move(place, old)
        new.rename(place)
    for name in gone:
        if os.path.lexists(directory / name):
            _move(directory / name, stage / _OLD / name)


def _undo(
    stage: pathlib.Path, directory: pathlib.Path, names: Collection[str], gone: Collection[str]
) -> None:
    for name in (*names, *gone):
        new, place, old = stage / _NEW / name, directory / name, stage / _OLD / name
        if name in names and not os.path.lexists(new):
            place.rename(new)
        if os.path.lexists(old) and not os.path.lexists(place):
            _move(old, place)


def _linked(place: pathlib.Path, old: pathlib.Path) -> bool:
    """Keeps a file under a second name, so that at no moment its first is missing."""
    try:
        os.link(place, old, follow_symlinks=False)
    except OSError:  # a file system without hard links
        return False
    return True


def _move(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        source.rename(target)
    except OSError as problem:
        if problem.errno not in (errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST):
            raise
        _remove(target)  # half of a copy that a killed process was making
        shutil.move(source, target)  # a folder of a lower layer, in a container


def _is_folder(entry: pathlib.Path) -> bool:
    return entry.is_dir() and not entry.is_symlink()


def _remove(entry: pathlib.Path) -> None:
    if _is_folder(entry):
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _flush(file: pathlib.Path) -> None:
    """Waits until the disk has it, since the old one goes next."""
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())
