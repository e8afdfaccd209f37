"""A view in marimo, by the same file and without the network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Error, Page

NOTEBOOK = """
import marimo
app = marimo.App()

@app.cell
def _():
    import llama_loupe as loupe
    from llama_jax import Llama
    llama = Llama.from_pretrained("cria")
    run = llama.run("When Mary and John went to", capture=("q_rot", "k_rot"))
    return loupe, run

@app.cell
def _(loupe, run):
    loupe.attention(run)
    return
"""


def test_marimo_shows_a_view_that_asks_its_kernel(page: Page, tmp_path: Path):
    place, log = tmp_path / "notebook.py", tmp_path / "log"
    place.write_text(NOTEBOOK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", str(place), "--headless", "--no-token"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env={**os.environ, "HOME": str(tmp_path)}, stdout=output, stderr=output
        )
    try:
        for _ in range(100):
            try:
                page.goto(f"http://127.0.0.1:{port}")
                break
            except Error:  # it has not started yet
                page.wait_for_timeout(300)
        atlas = page.locator(".loupe-atlas canvas")
        atlas.wait_for(state="visible", timeout=60_000)
        atlas.press("ArrowDown")
        page.get_by_text("Layer 1, head 0, which reads").wait_for()
        page.locator(".loupe-map canvas[aria-label*='Largest']").wait_for()
    finally:
        print(log.read_text()[-3000:])  # seen where the test fails
        server.terminate()
        server.wait(15)
