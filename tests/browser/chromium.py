"""The browser that the tests drive: which one, and how to get one.

`python tests/browser/chromium.py` finds a Chromium or Chrome, installs one where there is none, and
prints where it is. Where neither is possible it fails and says what to do; `NO_BROWSER=1` goes on
without the browser tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "/opt/google/chrome/chrome",
)
WITHOUT = (
    "No Chromium or Chrome was found, so the tests in tests/browser cannot run.\n"
    "Install one (Debian: apt-get install chromium; anywhere: .venv/bin/python -m playwright"
    " install --with-deps chromium),\n"
    "or name one: CHROMIUM=/path/to/chromium make test\n"
    "or go on without these tests: NO_BROWSER=1 make test"
)


class NoBrowser(RuntimeError):
    """No browser could be found; the message says how to get one."""


def find() -> str:
    """The path of the first browser that starts: `CHROMIUM`, then `PATH`, then the usual places.

    Raises `NoBrowser`, also where `CHROMIUM` names something that does not start.
    """
    if named := os.environ.get("CHROMIUM"):
        if starts(named):
            return named
        raise NoBrowser(f"CHROMIUM={named}: `{named} --version` fails")
    for path in candidates():
        if starts(path):
            return path
    raise NoBrowser(WITHOUT)


def candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    yield from filter(os.path.exists, PLACES)
    if (path := playwrights_own()) and os.path.exists(path):
        yield path


def starts(path: str) -> bool:
    try:
        asked = subprocess.run([path, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def playwrights_own() -> str | None:
    """Where Playwright keeps its Chromium, whether or not it is there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def install() -> None:
    """Debian's package where we may install it, else Playwright's download."""
    if may := apt_get():
        wanted = [*may, "install", "-y", "--no-install-recommends"]
        wanted += ["chromium", "fonts-dejavu-core"]
        # A package list that is missing or old is fetched once.
        if run(wanted) or (run([*may, "update"]) and run(wanted)):
            return
    run([sys.executable, "-m", "playwright", "install", "chromium"])


def apt_get() -> list[str] | None:
    """`apt-get` as a command that asks nothing, or None where we may not or cannot use it."""
    if not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        return None
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") and run(["sudo", "-n", "true"], quiet=True):
        return ["sudo", "-n", *command]
    return None


def run(command: list[str], quiet: bool = False) -> bool:
    if not quiet:
        print("+", *command, flush=True)
    output = subprocess.DEVNULL if quiet else None
    return not subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    ).returncode


def main() -> str | int:
    if os.environ.get("NO_BROWSER"):
        print(f"NO_BROWSER={os.environ['NO_BROWSER']}: the tests in tests/browser will be skipped")
        return 0
    try:
        print(f"browser: {find()}")
    except NoBrowser as error:
        if os.environ.get("CHROMIUM"):
            return str(error)
        install()
        try:
            print(f"browser: {find()}")
        except NoBrowser as still:
            return str(still)
    return 0


if __name__ == "__main__":
    sys.exit(main())
