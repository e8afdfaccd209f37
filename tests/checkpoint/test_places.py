"""Where a checkpoint is saved: what is no such place is said before anything is written."""

import os

import pytest

from llama_jax import Llama
from llama_jax.checkpoint import CheckpointError, huggingface, orbax
from tests.tiny import GQA

FORMATS = ["huggingface", "orbax"]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA)


@pytest.mark.parametrize("format", FORMATS)
def test_into_the_folder_that_one_stands_in(llama, tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        llama.save(".", format=format)
        assert os.path.samefile(os.getcwd(), tmp_path)
        assert Llama.from_pretrained(".").config == GQA
    assert not [name for name in os.listdir() if name.startswith(".")]


@pytest.mark.parametrize("verb", [*FORMATS, "from_pretrained"])
@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, TypeError, "path is None, of type NoneType"),
        (3, TypeError, "path is 3"),
        (b"x", TypeError, "path is b'x'"),
        ("", ValueError, "path is ''"),
        ("a\0b", ValueError, "names no file and no folder"),
        ("file", CheckpointError, "file is a file. A checkpoint is a folder"),
        ("./file/x/y", (CheckpointError, FileNotFoundError), "file"),
    ],
)
def test_what_is_no_place_is_named(llama, tmp_path, monkeypatch, verb, given, error, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(error, match=says):
        Llama.from_pretrained(given) if verb == "from_pretrained" else llama.save(given, verb)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_replaced_while_it_is_read_is_no_checkpoint(llama, tmp_path, monkeypatch, format):
    """Else some weights would be of the one, and some of the other."""
    llama.save(tmp_path, format=format)
    module = {"huggingface": huggingface, "orbax": orbax}[format]
    load = module.load

    def slow(folder, *arguments, **named):
        load(folder, *arguments, **named)
        llama.save(folder, format=format)

    monkeypatch.setattr(module, "load", slow)
    with pytest.raises(CheckpointError, match=r"was written to while it was read: .* changed"):
        Llama.from_pretrained(tmp_path)
    monkeypatch.undo()
    (tmp_path / "notes").write_text("mine")
    Llama.from_pretrained(tmp_path)
