"""Meta's checkpoints and Meta's reference model, on the same random weights in f32."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import jax.numpy as jnp
import llama_models
import numpy as np
import pytest
import torch
from fairscale.nn.model_parallel import initialize as model_parallel
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.model import Transformer

from llama_jax import Llama, LlamaConfig
from llama_jax.checkpoint import CheckpointError, meta
from llama_jax.config import ConfigError, RopeScaling
from llama_jax.model import parameters

PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 16,
    "n_kv_heads": 8,
    "vocab_size": 96,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 300))
KEYS = "layers.1.attention.wk.weight"


@pytest.fixture(scope="module")
def reference():
    """Meta's model with random weights; made as one rank of one, in this process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    model_parallel.initialize_model_parallel(1)
    torch.manual_seed(0)
    model = Transformer(ModelArgs(**PARAMS, max_batch_size=2, max_seq_len=512))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    yield model.float().eval()
    model_parallel.destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def weights(reference):
    return {name: tensor.detach().clone() for name, tensor in reference.state_dict().items()}


def write(folder, weights, ranks=1, **params):
    """A checkpoint as Meta lays it out over model-parallel ranks."""
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    size = PARAMS["dim"] // PARAMS["n_heads"]
    for rank in range(ranks):
        held = {}
        for name, tensor in weights.items():
            axis = meta._axis(name)
            if name.endswith(("wk.weight", "wv.weight")) and ranks > PARAMS["n_kv_heads"]:
                heads = torch.split(tensor, size)  # one head a rank, neighbours the same
                held[name] = heads[rank * len(heads) // ranks].clone()
            elif axis is None:
                held[name] = tensor
            else:
                held[name] = torch.chunk(tensor, ranks, axis)[rank].clone()
        torch.save(held, folder / f"consolidated.{rank:02}.pth")
    return folder


def values(llama):
    return {name: np.asarray(slot.get_value()) for name, slot in parameters(llama.model).items()}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_logits_are_those_of_meta_s_model(reference, weights, tmp_path):
    llama = Llama.from_pretrained(write(tmp_path / "meta", weights))
    with torch.no_grad():
        expected = reference(torch.tensor(TOKENS), 0).numpy()
    np.testing.assert_allclose(llama.run(TOKENS).logits, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_any_number_of_ranks_holds_the_same_weights(weights, tmp_path, ranks):
    one = Llama.from_pretrained(write(tmp_path / "one", weights))
    # 405B on 16 ranks says that it has 16 KV heads, of which each two are the same.
    params = {"n_kv_heads": 16} if ranks == 16 else {}
    many = Llama.from_pretrained(write(tmp_path / "many", weights, ranks, **params))
    assert many.config == one.config and many.config.num_key_value_heads == 8
    same(values(many), values(one))


def test_a_checkpoint_goes_to_transformers_layout_and_back(weights, tmp_path):
    llama = Llama.from_pretrained(write(tmp_path / "meta", weights))
    llama.save(tmp_path / "hf")
    again = Llama.from_pretrained(tmp_path / "hf")
    assert again.config == llama.config
    again.save(tmp_path / "back", format="meta")
    written = torch.load(tmp_path / "back" / "consolidated.00.pth", weights_only=True)
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(written[name], tensor), name


def test_meta_s_model_loads_what_is_saved(reference, weights, tmp_path):
    config = LlamaConfig.from_meta(PARAMS, tie_word_embeddings=True)
    tied = Llama.random(config, std=0.2)
    tied.save(tmp_path / "out", format="meta")
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    model = Transformer(ModelArgs(**params, max_batch_size=2, max_seq_len=512)).float().eval()
    held = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True)
    model.load_state_dict(held, strict=True)
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS), 0).numpy()
    np.testing.assert_allclose(tied.run(TOKENS).logits, expected, rtol=1e-5, atol=5e-5)
    again = Llama.from_pretrained(tmp_path / "out")  # the head's bytes are the embedding's
    assert again.config.tie_word_embeddings
    same(values(again), values(tied))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("wanted", [None, "bf16", "f32"])
def test_dtypes_are_kept_or_cast(weights, tmp_path, stored, wanted):
    narrow = {name: tensor.to(getattr(torch, stored)) for name, tensor in weights.items()}
    llama = Llama.from_pretrained(write(tmp_path / "meta", narrow, ranks=2), dtype=wanted)
    name = {"bf16": "bfloat16", "f32": "float32", None: stored}[wanted]
    assert llama.model.dtype == name
    expected = narrow["layers.1.feed_forward.w2.weight"].float().numpy().astype(name)
    np.testing.assert_array_equal(llama.model.layers[1].mlp.down_proj.weight[...], expected)


def test_the_tokenizer_comes_along_and_must_be_the_model_s(weights, tmp_path):
    original = pathlib.Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    folder = write(tmp_path / "meta", weights)
    shutil.copy(original, folder)
    refused(
        folder, r"tokenizer.model has 128,256 tokens with the special ones, params.json says 96"
    )
    config = LlamaConfig.from_meta({**PARAMS, "dim": 32, "n_layers": 1, "vocab_size": 128256})
    Llama.random(config).save(tmp_path / "large", format="meta")
    shutil.copy(original, tmp_path / "large")
    llama = Llama.from_pretrained(tmp_path / "large")
    assert llama.stop_tokens == (128001, 128008, 128009)
    assert llama.tokens("Hello, world!").tolist() == [[128000, 9906, 11, 1917, 0]]
    llama.save(tmp_path / "again", format="meta")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == original.read_bytes()


def test_old_files_rotary_frequencies_are_left_alone(weights, tmp_path):
    write(tmp_path / "meta", {**weights, "rope.freqs": torch.ones(2)})
    Llama.from_pretrained(tmp_path / "meta")


def test_an_argument_overrules_what_params_json_cannot_say(weights, tmp_path):
    folder = write(tmp_path / "meta", weights)
    config = LlamaConfig.from_meta(PARAMS, rope_scaling_factor=32.0, tie_word_embeddings=False)
    assert Llama.from_pretrained(folder, config=config).config.rope_scaling.factor == 32


def refused(folder, says):
    with pytest.raises(CheckpointError, match=says):
        Llama.from_pretrained(folder)


def test_a_pickle_that_would_run_code_is_refused(weights, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    folder = write(tmp_path / "meta", weights)
    torch.save({**weights, KEYS: Evil()}, folder / "consolidated.00.pth")
    refused(folder, "would run code")
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Evil()))
    refused(folder, "nothing of it was opened")
    assert not (tmp_path / "hacked").exists()


def test_broken_files_are_named(weights, tmp_path):
    folder = write(tmp_path / "meta", weights, ranks=2)
    file = folder / "consolidated.01.pth"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    refused(folder, r"consolidated.01.pth \([\d,]+ bytes\) is not a whole torch file")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "Git LFS pointer")
    file.unlink()
    refused(folder, r"wq.weight: files have \[32, 64\], config says \[64, 64\]")
    file.write_bytes(whole)
    file.rename(folder / "consolidated.02.pth")
    refused(folder, "one is missing")
    for leftover in folder.glob("*.pth"):
        leftover.unlink()
    refused(folder, "no consolidated.00.pth; it has params.json")


def rezipped(folder, change, compression=zipfile.ZIP_STORED):
    """Writes the one file of a checkpoint anew, its entries changed: name -> bytes."""
    (file,) = folder.glob("*.pth")
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


def named(entries, end):
    return next(name for name in entries if name.endswith(end))


def test_a_file_whose_entries_are_compressed_is_refused(weights, tmp_path):
    folder = write(tmp_path / "meta", weights)
    rezipped(folder, lambda entries: None, zipfile.ZIP_DEFLATED)
    refused(folder, r"is compressed \(.*nothing of it was opened")
    rezipped(folder, lambda entries: None)  # and so without compression it is read as before
    plain = Llama.from_pretrained(write(tmp_path / "plain", weights))
    same(values(Llama.from_pretrained(folder)), values(plain))


def test_a_file_of_the_other_byte_order_is_refused(weights, tmp_path):
    folder = write(tmp_path / "meta", weights)
    rezipped(folder, lambda entries: entries.update({named(entries, "/byteorder"): b"big"}))
    refused(folder, "the other byte order")


def test_a_piece_of_another_size_than_its_tensors_is_refused(weights, tmp_path):
    folder = write(tmp_path / "meta", weights)

    def shorten(entries):
        name = named(entries, "/data/3")
        entries[name] = entries[name][:-64]

    rezipped(folder, shorten)
    refused(folder, "pieces of data for")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_pickle_out_of_proportion_is_refused_before_it_is_read(
    weights, tmp_path, monkeypatch, compression
):
    folder = write(tmp_path / "meta", weights)
    bomb = b"(" + b"]" * 30_000_000 + b"."
    rezipped(folder, lambda e: e.update({named(e, "/data.pkl"): bomb}), compression)
    monkeypatch.setattr(torch, "load", None)
    refused(folder, "is compressed" if compression else "data.pkl has 30,000,002 bytes; what says")


@pytest.mark.parametrize(
    "content", [{}, {1: torch.ones(2)}, [torch.ones(2)], {"a": torch.ones(2).to_sparse()}, {"a": 1}]
)
def test_what_holds_no_plain_tensors_by_name_is_refused(tmp_path, content):
    folder = write(tmp_path / "meta", {})
    torch.save(content, folder / "consolidated.00.pth")
    refused(folder, "no tensors by name|in one piece|pieces of data")


def test_a_tensor_whose_sign_is_kept_apart_is_refused(weights, tmp_path):
    folder = write(tmp_path / "meta", {**weights, "norm.weight": torch._neg_view(torch.ones(64))})
    refused(folder, "norm.weight does not lie in the file in one piece|pieces of data")


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02", b"\x80\x02}q\x00(X\xff\xff\xff\x7f.", b"(" * 99]
)
def test_a_damaged_pickle_is_named(weights, tmp_path, data):
    folder = write(tmp_path / "meta", weights)
    rezipped(folder, lambda entries: entries.update({named(entries, "/data.pkl"): data}))
    refused(folder, "is not a whole torch file|would run code|no tensors by name")


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(48, 64, dtype=torch.int8),
        torch.ones(48, 64, dtype=torch.bfloat16),
        torch.ones(48, 1),  # NumPy would repeat its one column
        torch.tensor(3.0),
    ],
    ids=["int8", "bfloat16", "a column", "a number"],
)
@pytest.mark.parametrize("name", ["tok_embeddings.weight", "norm.weight"])
def test_ranks_whose_parts_do_not_go_together_are_refused(weights, tmp_path, other, name):
    folder = write(tmp_path / "meta", weights, ranks=2)
    file = folder / "consolidated.01.pth"
    held = torch.load(file, weights_only=True)
    torch.save({**held, name: other}, file)
    refused(folder, rf"{name}: (ranks have F32 \[\d+(, 64)?\], |files have)")


def test_more_layers_than_the_files_have_tensors_is_refused_before_a_model_is_made(
    weights, tmp_path, monkeypatch
):
    folder = write(tmp_path / "meta", weights, n_layers=100_000)
    monkeypatch.setattr("llama_jax.llama.Model", None)
    refused(folder, "the config says 100,000 layers, and the files have 21 tensors")


def test_data_that_no_tensor_names_is_refused(weights, tmp_path):
    folder = write(tmp_path / "meta", weights)
    (file,) = folder.glob("*.pth")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/data/999", b"more")
    refused(folder, "pieces of data for")


def test_what_does_not_fit_is_listed_before_anything_is_read(weights, tmp_path):
    some = dict(weights)
    del some[KEYS]
    some["layers.0.attention.wo.weight"] = torch.ones(64, 32)
    some["layers.0.lora.weight"] = torch.ones(3)
    some["norm.weight"] = torch.ones(64, dtype=torch.int8)
    with pytest.raises(CheckpointError) as caught:
        Llama.from_pretrained(write(tmp_path / "meta", some))
    for says in (
        f"{KEYS}: not in the files, params.json says [32, 64]",
        "layers.0.attention.wo.weight: files have [64, 32], config says [64, 64]",
        "layers.0.lora.weight: files have [3], a Llama 3 has no such tensor",
        "norm.weight: files have torch.int8",
    ):
        assert says in str(caught.value)


def test_weights_that_are_not_finite_are_named_in_a_warning(weights, tmp_path):
    some = {name: tensor.clone() for name, tensor in weights.items()}
    some[KEYS][3, 4] = float("nan")
    with pytest.warns(UserWarning, match=r"in 1 of 21 weights, layers.1.self_attn.k_proj.weight"):
        Llama.from_pretrained(write(tmp_path / "meta", some))


def test_a_full_disk_leaves_the_old_checkpoint(weights, tmp_path, monkeypatch):
    folder = write(tmp_path / "meta", weights)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        Llama.random(LlamaConfig.from_meta(PARAMS)).save(folder, format="meta")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_what_params_json_cannot_say_is_refused():
    config = LlamaConfig.from_meta(PARAMS)
    llama = Llama.random(dataclasses.replace(config, rope_scaling=RopeScaling(16.0)))
    with pytest.raises(ConfigError, match=r"params.json cannot say RopeScaling"):
        llama.save("nowhere", format="meta")
    assert jnp.isfinite(llama.model.norm.weight[...]).all()
