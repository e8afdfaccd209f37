import dataclasses
import json
import os
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_jax import Ablate, Capture, Llama, Run, runfile
from llama_jax.model.tap import TopK
from llama_jax.runfile import RunFileError
from tests.tiny import GQA

ROWS = [np.arange(9).tolist(), [5, 6, 7]]
CAPTURES = [
    "resid_post",
    Capture("pattern", reduce=("max_pool", 4)),
    Capture("mlp.act", reduce=("topk", 3), dtype="bf16"),
    Capture("q", heads=[1], positions=slice(-2, None)),
    "logits",
]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3, dtype="bf16")


@pytest.fixture
def saved(llama, tmp_path):
    run = llama.run(ROWS, CAPTURES, edits=Ablate(("z", 1), heads=[0]))
    run.save(tmp_path / "a.run")
    return run, tmp_path / "a.run"


def test_what_is_loaded_is_what_was_saved_bit_for_bit(llama, saved):
    run, path = saved
    for again in (Run.load(path), Run.load(str(path), llama)):
        assert again.names == run.names and again.edited == run.edited == ("layers.1.self_attn.z",)
        assert again.config == run.config and again.dtype == "bfloat16"
        assert again.versions == run.versions and again.model is None
        assert again.lengths.tolist() == [9, 3] and (again.tokens == run.tokens).all()
        for name in run.names:
            expected, got = run[name], again[name]
            assert isinstance(expected, TopK) == isinstance(got, TopK)
            pairs = zip(expected, got, strict=True) if isinstance(got, TopK) else [(expected, got)]
            for one, other in pairs:
                assert one.dtype == other.dtype and one.shape == other.shape
                assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert again.captures["layers.0.self_attn.q"].positions == slice(-2, None)
        np.testing.assert_array_equal(again.logits, run.logits)
        np.testing.assert_array_equal(again.loss, run.loss)
        assert again.nbytes == run.nbytes


def test_a_part_of_the_logits_lies_beside_them(llama, tmp_path):
    run = llama.run(ROWS, Capture("logits", reduce=("topk", 4)))
    run.save(tmp_path / "b.run")
    again = Run.load(tmp_path / "b.run")
    np.testing.assert_array_equal(again.logits, run.logits)
    np.testing.assert_array_equal(again["logits"].indices, run["logits"].indices)


def test_a_changed_byte_is_found(saved):
    whole = bytearray(saved[1].read_bytes())
    whole[-100] ^= 4
    saved[1].write_bytes(whole)
    with pytest.raises(RunFileError, match=r"is damaged: the bytes of"):
        Run.load(saved[1])
    assert Run.load(saved[1], verify=False).names == saved[0].names


def _changed_anywhere(path, step):
    """A file in which one byte of the header is another, for every so many bytes."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    for at in range(0, end, step):
        for flip in (1, 2, 4):  # 1, 3 and 5; F16 and F32 are not far apart
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            yield at, path


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("verify", [True, False])
def test_a_changed_byte_of_the_header_is_found(saved, step, verify):
    for at, path in _changed_anywhere(saved[1], step):
        with pytest.raises(RunFileError):
            pytest.fail(f"byte {at}: {Run.load(path, verify=verify)}")


def test_heads_and_dtypes_that_were_changed_are_found(llama, tmp_path):
    run = llama.run(ROWS, Capture("q", heads=[1, 3]))
    run.save(tmp_path / "a.run")
    whole = (tmp_path / "a.run").read_bytes()
    for old, new in ((b"[1, 3]", b"[0, 2]"), (b'"F32"', b'"I32"'), (b"bfloat16", b"float16 ")):
        assert old in whole
        (tmp_path / "a.run").write_bytes(whole.replace(old, new))
        with pytest.raises(RunFileError, match="is damaged: the bytes of the header"):
            Run.load(tmp_path / "a.run")


OLD = {  # as the first version wrote it, which had no checksum of the header
    "format": 1,
    "model": None,
    "config": {
        "vocab_size": 3,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "dtype": "float32",
    "captures": {
        "layers.0.self_attn.q": {
            "positions": {"slice": [-1, None, None]},
            "heads": [1],
            "reduce": None,
            "dtype": None,
        }
    },
    "edited": ["layers.0.self_attn.z"],
    "pieces": None,
    "versions": {"llama-jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.0"},
}


def test_a_file_that_is_replaced_while_it_is_read_is_refused(saved, monkeypatch):
    mapped = runfile._mapped

    def slow(path, info):
        monkeypatch.undo()
        saved[0].save(path)
        return mapped(path, info)

    monkeypatch.setattr(runfile, "_mapped", slow)
    with pytest.raises(RunFileError, match="was written to while it was read"):
        Run.load(saved[1], verify=False)


def test_a_file_of_an_older_version_is_read(tmp_path):
    arrays = {
        "tokens": np.array([[0, 2]], np.int32),
        "lengths": np.array([2], np.int32),
        "logits": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        "layers.0.self_attn.q": np.array([[[[0.5, 1.5]]]], np.float32),
    }
    checksums = {name: zlib.crc32(array.tobytes()) for name, array in arrays.items()}
    about = json.dumps({**OLD, "checksums": checksums})
    save_file(arrays, tmp_path / "old.run", metadata={"llama_jax.run": about})
    run = Run.load(tmp_path / "old.run")
    assert run.tokens.tolist() == [[0, 2]] and run.edited == ("layers.0.self_attn.z",)
    assert run.config.num_attention_heads == 2 and run.versions["llama-jax"] == "0.1.0"
    assert run.captures["layers.0.self_attn.q"].heads == (1,)
    np.testing.assert_array_equal(run["layers.0.self_attn.q"], arrays["layers.0.self_attn.q"])
    np.testing.assert_array_equal(run.logits, arrays["logits"])


def test_arrays_are_mapped_not_read(saved):
    again = Run.load(saved[1])
    assert isinstance(again["resid_post", 0], np.memmap) and isinstance(again.logits, np.memmap)
    assert not again.logits.flags.writeable


def test_without_its_llama_a_run_says_what_it_cannot_do(saved):
    again = Run.load(saved[1])
    assert again.top(2)[0].text == "" and repr(again).startswith("Run(2 x 9 tokens")
    with pytest.raises(ValueError, match=r"Run.load\(path, llama=llama\)"):
        again.probability(" Mary")
    assert "it needs weights" in repr(again.check())


def test_a_run_of_another_model_is_refused(saved):
    other = Llama.random(dataclasses.replace(GQA, num_hidden_layers=2))
    with pytest.raises(RunFileError, match=r"num_hidden_layers=3.*num_hidden_layers=2"):
        Run.load(saved[1], other)


def test_a_file_that_is_not_whole_is_a_clear_error(saved, tmp_path):
    whole = saved[1].read_bytes()
    for size in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.run").write_bytes(whole[:size])
        with pytest.raises(RunFileError, match=f"{size:,} bytes"):
            Run.load(tmp_path / "cut.run")
    with pytest.raises(FileNotFoundError, match=r"none\.run"):
        Run.load(tmp_path / "none.run")


def _rewritten(path, change):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["llama_jax.run"])
    arrays = dict(load_file(path))
    change(about, arrays)
    save_file(arrays, path, metadata={"llama_jax.run": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda about, arrays: about.update(format=2), "format 2, written by llama-jax.*newer"),
        (lambda about, arrays: about.pop("config"), "no run, or a damaged one: KeyError"),
        (lambda about, arrays: about.update(captures=7), "damaged"),
        (lambda about, arrays: arrays.pop("layers.1.resid_post"), "layers.1.resid_post"),
        (lambda about, arrays: about["config"].update(hidden_size="x"), "damaged"),
    ],
)
def test_a_newer_or_damaged_file_is_a_clear_error(saved, change, says):
    _rewritten(saved[1], change)
    with pytest.raises(RunFileError, match=says):
        Run.load(saved[1])


def test_other_safetensors_are_no_run(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "x.run")
    with pytest.raises(RunFileError, match="no run"):
        Run.load(tmp_path / "x.run")


def test_the_old_file_stays_until_the_new_one_is_whole(llama, saved, monkeypatch):
    run, path = saved
    before = path.read_bytes()
    mapped = Run.load(path)

    def broken(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("llama_jax.runfile.os.fsync", broken)
    with pytest.raises(OSError, match="No space"):
        llama.run(ROWS).save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["a.run"]
    monkeypatch.undo()
    llama.run(ROWS).save(path)
    assert Run.load(path).names == () and path.read_bytes() != before
    np.testing.assert_array_equal(mapped["resid_post", 0], run["resid_post", 0])
    with pytest.raises(RunFileError, match="is a folder"):
        run.save(path.parent)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, TypeError, "path is None"),
        (7, TypeError, "path is 7"),
        ("", ValueError, "path is ''"),
        ("a.run/b.run", RunFileError, r"a\.run cannot be made"),
    ],
)
def test_where_no_run_can_be_saved_is_named(saved, monkeypatch, given, error, says):
    monkeypatch.chdir(saved[1].parent)
    with pytest.raises(error, match=says):
        saved[0].save(given)
    if error is TypeError or given == "":
        with pytest.raises(error, match=says):
            Run.load(given)


def test_the_file_says_where_it_came_from(saved):
    from safetensors import safe_open

    with safe_open(saved[1], "np") as file:
        about = json.loads(file.metadata()["llama_jax.run"])
    assert about["format"] == 1 and about["dtype"] == "bfloat16"
    assert set(about["versions"]) == {"llama-jax", "jax", "flax", "numpy"}
    cria = Llama.from_pretrained("cria")
    cria.run("One day").save(saved[1])
    assert Run.load(saved[1]).model == cria.name == "cria"
    assert Llama.abstract("llama-3.2-1b").name == "llama-3.2-1b"


def test_a_run_is_drawn_as_a_tree_whose_paths_read_it(saved):
    import treescope

    run, _ = saved
    text = treescope.render_to_text(run)
    assert "layers.0: " in text and "KiB" in text and "resid_post" in text
    assert jnp.shape(eval("run" + "['layers.1.resid_post']", {"run": run})) == (2, 9, 32)


@pytest.mark.parametrize("heads", [slice(0, 2), [True, True, False, False], [0, 1]])
def test_every_form_of_a_choice_is_kept(tmp_path, heads):
    run = Llama.random(GQA).run([1, 2, 3], Capture(("z", 1), heads=heads, positions=slice(1, None)))
    run.save(tmp_path / "x.run")
    again = Run.load(tmp_path / "x.run")
    for name, capture in run.captures.items():
        kept = again.captures[name]
        assert (kept.heads, kept.positions) == (capture.heads, capture.positions)
    np.testing.assert_array_equal(again["z"], run["z"])
