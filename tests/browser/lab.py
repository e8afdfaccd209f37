"""A private JupyterLab server, and a page of it that a test can drive."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page

NOTEBOOK = "window.jupyterapp.shell.currentWidget"
IDLE = f"""() => {{
  const kernel = {NOTEBOOK}?.sessionContext?.session?.kernel;
  return kernel?.status === 'idle'
    && {NOTEBOOK}.content.widgets.every(cell => (cell.model.executionState ?? 'idle') === 'idle');
}}"""
# Every output has a size, but progress bars that are done and hidden; Treescope has unpacked its
# tree, and the first picture that shows in it (those inside folded parts are drawn when they are
# unfolded).
DRAWN = """cell => [...cell.querySelectorAll('.jp-OutputArea-output')].every(output => {
  const trees = [...output.querySelectorAll('treescope-container')].map(tree => tree.shadowRoot);
  const picture = tree => [...tree.querySelectorAll('.arrayviz_container')]
    .find(one => one.getClientRects().length);
  const done = output.classList.contains('lm-mod-hidden');
  return (done || output.getBoundingClientRect().height > 0) && trees.every(tree =>
    tree.querySelector('.treescope_root')?.textContent.trim()
    && !picture(tree)?.querySelector('.loading_message'));
})"""
# Direct, whatever proxy the environment names.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A running JupyterLab: `address` of the server, `root` its folder, `log` what it printed."""

    address: str
    token: str
    root: Path
    log: Path

    def request(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(
            f"{self.address}{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with LOCAL.open(request, timeout=5) as answer:
            return answer.read()

    def end_kernels(self) -> None:
        with contextlib.suppress(OSError):
            for kernel in json.loads(self.request("/api/kernels")):
                self.request(f"/api/kernels/{kernel['id']}", "DELETE")


@contextlib.contextmanager
def server(folder: Path, start_seconds: float = 60) -> Iterator[Server]:
    """JupyterLab on a free port with all its settings, and the user's home, inside `folder`."""
    root, log, settings = folder / "root", folder / "server.log", folder / "settings"
    root.mkdir(parents=True)
    # Without this the news dialog asks the network, and covers the page.
    notifications = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    notifications.parent.mkdir(parents=True)
    notifications.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), root, log)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"]
    command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}"]
    command += [f"--ServerApp.root_dir={root}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment(folder), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + start_seconds
        while not answers(lab):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield lab
    finally:
        lab.end_kernels()
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment(folder: Path) -> dict[str, str]:
    """Ours, with every place that Jupyter reads or writes moved into `folder`."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    return keep | {
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        # The kernel named python3 is this Python, whatever the machine has installed.
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HF_HUB_OFFLINE": "1",
    }


def answers(lab: Server) -> bool:
    try:
        return bool(lab.request("/api/status"))
    except OSError:
        return False


class LabPage:
    """One notebook in one tab of JupyterLab. Cells are counted from 0, Markdown cells included."""

    def __init__(self, page: Page, lab: Server) -> None:
        self.page, self.lab = page, lab

    def open(self, notebook: str, theme: str = "JupyterLab Light", timeout: float = 60) -> None:
        """Opens `notebook` (a path below the server's root) and waits for its kernel.

        theme: "JupyterLab Light", "JupyterLab Dark" or "JupyterLab Dark High Contrast".
        """
        # A workspace of its own: Lab restores the tabs that the last test had open.
        place = f"/lab/workspaces/{uuid.uuid4().hex}/tree/{notebook}?token={self.lab.token}"
        self.page.goto(self.lab.address + place)
        self.page.wait_for_function("() => !!window.jupyterapp", timeout=timeout * 1000)
        self.page.evaluate("() => window.jupyterapp.restored")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.wait(timeout)
        self.theme(theme)

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", {"theme": name})
        self.page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")

    def close(self) -> None:
        """Ends all kernels: twenty of them would hold the memory of twenty Llamas."""
        self.page.goto("about:blank")  # Lab takes a kernel's end for an error
        self.lab.end_kernels()

    def wait(self, seconds: float = 60) -> None:
        """Until the kernel and every cell are idle."""
        self.page.wait_for_function(IDLE, timeout=seconds * 1000)

    def command(
        self, name: str, arguments: dict[str, Any] | None = None, seconds: float = 60
    ) -> None:
        """Executes a command of JupyterLab and waits for its end."""
        self.page.evaluate(
            """([name, args, seconds]) => Promise.race([
              window.jupyterapp.commands.execute(name, args).then(() => null),
              new Promise((_, late) => setTimeout(late, seconds * 1000, `${name}: ${seconds} s`)),
            ])""",
            [name, arguments or {}, seconds],
        )

    def run_all(self, seconds: float = 120) -> None:
        """Runs all cells to the end, or to the first that fails."""
        self.command("notebook:run-all-cells", seconds=seconds)
        self.wait(seconds)

    def run_cell(self, index: int, seconds: float = 60) -> None:
        self.select(index)
        self.command("notebook:run-cell", seconds=seconds)
        self.wait(seconds)

    def start_cell(self, index: int) -> None:
        """Runs a cell without waiting for its end."""
        self.select(index)
        self.page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-cell')")

    def select(self, index: int) -> None:
        self.page.evaluate(
            f"""index => {{
              {NOTEBOOK}.content.deselectAll();
              {NOTEBOOK}.content.activeCellIndex = index;
            }}""",
            index,
        )

    def cells(self) -> list[dict[str, Any]]:
        """The notebook's cells as nbformat dictionaries, with their outputs."""
        return self.page.evaluate(f"() => {NOTEBOOK}.content.model.toJSON().cells")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        return self.cells()[index].get("outputs", [])

    def text(self, index: int) -> str:
        """What a cell printed, its result as plain text, or its traceback."""
        return "".join(map(plain, self.outputs(index)))

    def errors(self) -> list[str]:
        """Tracebacks of cells, each with the number of its cell."""
        return [
            f"cell {index}: {plain(output)}"
            for index, cell in enumerate(self.cells())
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]

    def drawn(self, index: int) -> Locator:
        """The cell on the page, scrolled into view, once everything it put out is drawn."""
        self.page.evaluate(f"index => {NOTEBOOK}.content.scrollToItem(index, 'start')", index)
        cell = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")
        cell.wait_for(state="visible")
        self.page.wait_for_function(DRAWN, arg=cell.element_handle())
        return cell


def plain(output: dict[str, Any]) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    if output["output_type"] == "error":
        text = "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
        text = re.sub(r"\x1b\[[\d;]*m", "", text)  # its colours
    return "".join(text)
