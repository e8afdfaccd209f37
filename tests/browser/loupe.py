"""A page that shows one view without Jupyter: our bundle, and Python answering its questions."""

from __future__ import annotations

import base64
import json
from typing import Any

from playwright.sync_api import Page, Route

from llama_loupe.view import View
from llama_loupe.widget import STATIC
from llama_loupe.wire import pack

ADDRESS = "http://127.0.0.1:1"  # nothing listens there: `serve` answers in its place

# The page itself has Jupyter's variables of the theme, as far as they decide light or dark.
PAGE = """<!doctype html><html lang="en"><head><title>a view</title><meta charset="utf-8">
<link rel="stylesheet" href="/loupe.css"><style>
body { margin: 8px; }
body[data-jp-theme-light="false"] { background: #111; color: #fff; --jp-layout-color0: #111;
  --jp-layout-color2: #424242; --jp-ui-font-color1: #fff; --jp-ui-font-color2: #bbb;
  --jp-border-color1: #757575; }
body[data-jp-theme-light="true"] { --jp-layout-color0: #fff; --jp-layout-color2: #eee;
  --jp-ui-font-color1: #212121; --jp-ui-font-color2: #616161; --jp-border-color1: #bdbdbd; }
</style></head><body data-jp-theme-light="true">
<main><h1>A notebook</h1><div id="place"></div></main>
<script type="module">
import loupe from "/loupe.js";
const bytes = text => Uint8Array.from(atob(text), mark => mark.charCodeAt(0)).buffer;
const state = await (await fetch("/state.json")).json();
state.buffers = state.buffers.map(bytes);
const listeners = {};
window.said = [];
window.model = {
  get: name => state[name],
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  off: (event, old) => { listeners[event] = (listeners[event] ?? []).filter(f => f !== old); },
  emit: (event, ...rest) => (listeners[event] ?? []).forEach(f => f(...rest)),
  send: async message => {
    window.said.push(message);
    if (message.kind !== "ask") return;
    const { content, buffers } = JSON.parse(await window.askPython(JSON.stringify(message)));
    window.model.emit("msg:custom", content, buffers.map(bytes));
  },
};
window.dispose = loupe.render({ model: window.model, el: document.getElementById("place") });
document.body.dataset.ready = "true";
</script></body></html>"""


def show(page: Page, view: View, dark: bool = False) -> None:
    """Opens `view` in `page`; its questions are answered as the widget would answer them."""
    payload, buffers = view.packed()
    state = json.dumps({"payload": payload, "buffers": _texts(buffers)})
    files = {
        "/": ("text/html", PAGE),
        "/state.json": ("application/json", state),
        "/loupe.js": ("text/javascript", (STATIC / "loupe.js").read_text()),
        "/loupe.css": ("text/css", (STATIC / "loupe.css").read_text()),
    }

    def serve(route: Route) -> None:
        kind, body = files.get(route.request.url.removeprefix(ADDRESS), ("text/plain", ""))
        route.fulfill(body=body, content_type=f"{kind}; charset=utf-8")

    page.route(f"{ADDRESS}/**", serve)
    page.expose_function("askPython", lambda message: _answer(view, json.loads(message)))
    page.goto(f"{ADDRESS}/")
    page.wait_for_selector("body[data-ready]")
    if dark:
        theme(page, dark)


def theme(page: Page, dark: bool) -> None:
    """As JupyterLab does when its theme changes."""
    page.evaluate("light => { document.body.dataset.jpThemeLight = light }", str(not dark).lower())
    page.wait_for_timeout(100)


def _answer(view: View, question: dict[str, Any]) -> str:
    content: dict[str, Any] = {"kind": "answer", "id": question["id"]}
    buffers: list[bytes] = []
    try:
        found = view.at(question["path"]).answer(question["what"], question["args"])
        content["body"] = pack(found, buffers)
    except Exception as error:
        content["error"] = f"{type(error).__name__}: {error}"
    return json.dumps({"content": content, "buffers": _texts(buffers)})


def _texts(buffers: list[bytes]) -> list[str]:
    return [base64.b64encode(part).decode() for part in buffers]
