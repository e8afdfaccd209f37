"""A browser, a page that tolerates no error and no stranger, and a JupyterLab of our own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import chromium
from tests.browser.lab import LabPage, Server, server

OURS = re.compile(r"(https?|wss?)://127\.0\.0\.1[:/]|blob:|data:|about:|file:")
RESULTS = Path("test-results")
expect.set_options(timeout=30_000)
FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    for node in (item, item.parent):  # whose page it may be
        node.stash[FAILED] = node.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if os.environ.get("NO_BROWSER"):
        pytest.skip("NO_BROWSER is set")
    try:
        path = chromium.find()
    except chromium.NoBrowser as error:
        pytest.fail(str(error), pytrace=False)
    with sync_playwright() as playwright:
        # No name resolves: not even the browser itself reaches the network.
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=path, args=[nowhere])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, node: pytest.Item | pytest.Collector) -> Iterator[Page]:
    """An empty page. Fails when it threw an error or asked another machine.

    `@pytest.mark.theirs("…")` names errors that Jupyter throws with none of our code on the page.
    """
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(60_000)  # a busy machine is no error
    page = context.new_page()
    errors: list[str] = []
    strangers: list[str] = []

    def seen(url: str) -> None:
        if not OURS.match(url):
            strangers.append(url)

    page.on("pageerror", lambda error: errors.append(str(error)))
    context.on("request", lambda asked: seen(asked.url))
    page.on("websocket", lambda socket: seen(socket.url))
    yield page
    theirs = node.get_closest_marker("theirs")
    errors = [error for error in errors if not (theirs and error in theirs.args)]
    if node.stash.get(FAILED, False) or errors or strangers:
        keep(page, node.name)
    context.close()
    assert not errors
    assert not strangers


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the test's own."""
    with opened(browser, request.node) as page:
        yield page


def keep(page: Page, name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / re.sub(r"[^\w.-]+", "-", name)
    page.screenshot(path=f"{place}.png")
    Path(f"{place}.html").write_text(page.content())
    print(f"what the page looked like: {place}.png, {place}.html")


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("lab") / "home") as lab:
        yield lab


@contextlib.contextmanager
def lab_page(page: Page, server: Server, node: pytest.Item | pytest.Collector) -> Iterator[LabPage]:
    """A page of JupyterLab: `lab.open(notebook)` opens what is in `lab.lab.root`."""
    lab = LabPage(page, server)
    yield lab
    if node.stash.get(FAILED, False):  # the page is kept as it is
        print(server.log.read_text()[-5000:])
    else:
        lab.close()


@pytest.fixture
def lab(page: Page, lab_server: Server, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    """One of the test's own."""
    with lab_page(page, lab_server, request.node) as lab:
        yield lab
