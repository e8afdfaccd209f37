"""The hub, played by a server on this machine: what is fetched, what is said where it is not."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from llama_jax import Llama
from llama_jax.checkpoint.hub import is_hub_id
from tests.tiny import GQA

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    folder = None
    asked: list[str]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        self.asked.append(f"{path} {self.headers.get('authorization', '')}")
        if "gated" in path:
            self.reply(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        elif "absent" in path:
            self.reply(401, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif "/revision/" in path and not path.endswith(("/main", COMMIT)):
            self.reply(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            files = [f for f in self.folder.rglob("*") if f.is_file()]
            listed = [
                {"type": "file", "path": str(f.relative_to(self.folder)), "size": 1, "oid": COMMIT}
                for f in files
            ]
            self.reply(200, json.dumps(listed).encode(), body)
        elif path.startswith("/api/models/"):
            files = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()]
            info = {"id": "me/llama", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            self.reply(200, json.dumps(info).encode(), body)
        else:
            content = (self.folder / path.split("/", 5)[5]).read_bytes()
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.reply(200, content, body, etag)

    def reply(self, status, content, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    Llama.random(GQA).save(folder)
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"large")
    (folder / "pytorch_model.bin").write_bytes(b"large")
    handler = type("Here", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.asked = handler.asked
    yield server
    server.shutdown()
    server.server_close()


def opened(tmp_path, name, address, **environment):
    """Opens it in a process of its own, since the hub's client reads its settings once."""
    code = (
        "import sys; from llama_jax import Llama\n"
        "try: print(Llama.from_pretrained(*sys.argv[1:]))\n"
        "except Exception as error: print(f'{type(error).__name__}: {error}')"
    )
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), **environment}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr


def test_a_repository_is_downloaded_and_opened_and_only_what_is_needed(hub, tmp_path):
    found = opened(tmp_path, "me/llama", hub.address, HF_TOKEN="hf_mine")
    assert found.startswith("Llama(38,624 parameters"), found
    files = {line.split()[0].rsplit("/", 1)[-1] for line in hub.asked if "/resolve/" in line}
    assert files == {"config.json", "model.safetensors"}
    assert any(line.endswith("Bearer hf_mine") for line in hub.asked)
    hub.asked.clear()
    again = opened(tmp_path, "me/llama", "http://127.0.0.1:9")  # nothing listens there
    assert again == found  # from the cache


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("me/gated", "CheckpointError: me/gated is gated: its owner lets in who has asked. Accept"),
        (
            "me/absent",
            "CheckpointError: There is no folder me/absent here, and the hub has no such",
        ),
    ],
)
def test_a_repository_that_is_not_open_says_what_to_do(hub, tmp_path, name, says):
    assert opened(tmp_path, name, hub.address).startswith(says)


def test_a_repository_without_safetensors_says_what_it_may_hold(hub, tmp_path):
    (tmp_path / "repository" / "model.safetensors").rename(tmp_path / "llama.gguf")
    found = opened(tmp_path, "me/llama", hub.address)
    assert found.startswith("CheckpointError: me/llama has no safetensors. GGUF and torch pickles")


def test_without_a_network_it_says_so_at_once(tmp_path):
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = opened(tmp_path, "me/llama", "http://127.0.0.1:9", **environment)
        assert found.startswith(
            "CheckpointError: There is no folder me/llama here, me/llama is not"
        )


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("me/llama")
    Llama.random(GQA).save("me/llama")
    assert not is_hub_id("me/llama")
    assert Llama.from_pretrained("me/llama").config == GQA
    assert not is_hub_id("me/llama/more") and not is_hub_id("llama") and not is_hub_id("../llama")
