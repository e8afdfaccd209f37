"""Meta's format where torch is not installed; with it, tests/oracle/test_meta.py."""

import json
import sys

import pytest

from llama_jax import Llama
from llama_jax.checkpoint import CheckpointError, meta
from tests.tiny import GQA


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "params.json").write_text(json.dumps({"dim": 64}))
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'llama-jax\[meta\]'"):
        Llama.from_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'llama-jax\[meta\]'"):
        Llama.random(GQA).save(tmp_path / "out", format="meta")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_params_json_alone_says_what_is_missing(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no consolidated.00.pth; it has params.json"):
        Llama.from_pretrained(tmp_path)


def test_a_config_json_beside_it_makes_it_hugging_face_s(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    assert meta.is_meta(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not meta.is_meta(tmp_path)
