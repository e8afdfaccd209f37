"""Checkpoints made here of a Llama with a few thousand weights, broken in every way we know."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_jax import Llama
from llama_jax.base import replacing
from llama_jax.checkpoint import CheckpointError, huggingface, tensors
from llama_jax.config import ConfigError, LlamaConfig
from llama_jax.dtypes import DtypeError, as_dtype
from llama_jax.model import Model, parameters

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
K_PROJ = "layers.1.self_attn.k_proj.weight"
NORM = "model.norm.weight"


def random_model(config=CONFIG, dtype=jnp.float32, seed=0):
    model, draw = Model(config), np.random.default_rng(seed)
    for slot in parameters(model).values():
        slot.set_value(jnp.asarray(draw.normal(size=slot.get_value().shape), dtype))
    return model


def values(model):
    return {name: np.asarray(slot.get_value()) for name, slot in parameters(model).items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def loaded(directory, config=CONFIG, dtype=None):
    model = Model(config)
    huggingface.load(directory, model, dtype)
    return values(model)


def rewrite(directory, change, file="model.safetensors"):
    """Applies `change` to the dict of a file's tensors."""
    held = load_file(directory / file)
    change(held)
    save_file(held, directory / file)


def snapshot(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def saved(tmp_path):
    huggingface.save(tmp_path / "llama", random_model())
    return tmp_path / "llama"


@pytest.fixture
def sharded(tmp_path):
    huggingface.save(tmp_path / "sharded", random_model(), max_shard_bytes=4000)
    return tmp_path / "sharded"


# Round trips


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, config, dtype):
    model = random_model(config, jnp.dtype(dtype))
    huggingface.save(tmp_path / "llama", model)
    assert_equal(loaded(tmp_path / "llama", config), values(model))
    held = load_file(tmp_path / "llama" / "model.safetensors")
    assert "model.embed_tokens.weight" in held
    assert ("lm_head.weight" in held) is (config is CONFIG)
    read = huggingface.read_config(tmp_path / "llama")
    assert read["torch_dtype"] == dtype
    assert LlamaConfig.from_huggingface(read) == config


def test_shards_hold_what_one_file_holds(saved, sharded):
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    assert not (sharded / "model.safetensors").exists()
    assert max(sum(t.nbytes for t in load_file(sharded / f).values()) for f in files) <= 4000
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == CONFIG.parameter_count * 4
    assert set(index["weight_map"]) == set(load_file(saved / "model.safetensors"))
    assert_equal(loaded(sharded), loaded(saved))


def test_a_shard_holds_at_least_one_tensor(tmp_path):
    huggingface.save(tmp_path / "llama", random_model(), max_shard_bytes=1)
    files = len(list((tmp_path / "llama").glob("*.safetensors")))
    assert files == len(parameters(Model(CONFIG)))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("wanted", ["bf16", "f32"])
def test_a_cast_equals_numpys(tmp_path, monkeypatch, stored, wanted):
    monkeypatch.setattr(tensors, "_CHUNK", 100)  # many chunks, the last one shorter
    huggingface.save(tmp_path / "llama", random_model())

    def cast(held):
        held.update({name: value.astype(jnp.dtype(stored)) for name, value in held.items()})

    rewrite(tmp_path / "llama", cast)
    held = load_file(tmp_path / "llama" / "model.safetensors")
    expected = {
        name.removeprefix("model."): value.astype(as_dtype(wanted)) for name, value in held.items()
    }
    got = loaded(tmp_path / "llama", dtype=as_dtype(wanted))
    assert_equal({name: got[name] for name in expected}, expected)


def test_f64_stays_f64_only_with_64_bits_switched_on(saved):
    def widen(held):
        held.update({name: value.astype(np.float64) / 3 for name, value in held.items()})

    rewrite(saved, widen)
    assert loaded(saved)["norm.weight"].dtype == np.float32
    with jax.enable_x64(True):
        wide = loaded(saved)
    assert wide["norm.weight"].dtype == np.float64
    rewrite(
        saved,
        lambda held: np.testing.assert_array_equal(held["model.norm.weight"], wide["norm.weight"]),
    )


def test_names_without_the_prefix_and_old_files_inv_freq_are_fine(saved):
    expected = loaded(saved)

    def rename(held):
        for name in list(held):
            held[name.removeprefix("model.")] = held.pop(name)
        held["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2, np.float32)

    rewrite(saved, rename)
    assert_equal(loaded(saved), expected)


def test_inspect_says_what_the_files_hold(sharded):
    info = huggingface.inspect(sharded)
    assert set(info) == set(parameters(Model(CONFIG)))
    assert (info[K_PROJ].shape, info[K_PROJ].dtype, info[K_PROJ].nbytes) == ((8, 16), "F32", 512)
    raw = info[K_PROJ].file.read_bytes()[info[K_PROJ].offset :][:512]
    assert raw == loaded(sharded)[K_PROJ].tobytes()


def test_arrays_do_not_share_memory_with_the_file(saved):
    """Also where the file's tensors lie so that JAX on a CPU would take a mapping over."""
    file, pad = saved / "model.safetensors", ""
    while huggingface.inspect(saved)["embed_tokens.weight"].offset % 64:
        pad += "-"
        save_file(load_file(file), file, metadata={"pad": pad})
    model = Model(CONFIG)
    huggingface.load(saved, model)
    before = {name: value.copy() for name, value in values(model).items()}
    size = file.stat().st_size
    with open(file, "r+b") as stream:  # in place: a mapping would see it
        stream.write(b"\xff" * size)
    assert_equal(values(model), before)


def test_a_loaded_array_can_be_donated(saved):
    expected = loaded(saved)["embed_tokens.weight"] + 1
    model = Model(CONFIG)
    huggingface.load(saved, model)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    np.testing.assert_array_equal(add(model.embed_tokens.weight.get_value()), expected)


def test_the_array_takes_over_the_memory_that_was_read_into():
    memory = tensors.aligned((64, 64), np.dtype(np.float32))
    memory[:] = 1
    assert jax.device_put(memory).unsafe_buffer_pointer() == memory.ctypes.data


@pytest.mark.parametrize("dtype", sorted(tensors.DTYPES))
def test_what_is_not_finite_is_told_by_its_bits(dtype):
    dtype = tensors.DTYPES[dtype]
    entries = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    extremes = [jnp.finfo(dtype).max, jnp.finfo(dtype).min, -0.0, jnp.finfo(dtype).tiny]
    entries[:4] = np.array(extremes, np.float64).astype(dtype)
    assert tensors.is_finite(entries)
    assert tensors.is_finite(entries[:0])
    for bad in (np.inf, -np.inf, np.nan, -np.nan, np.copysign(np.nan, -1)):
        broken = entries.copy()
        broken[-1] = bad
        assert not tensors.is_finite(broken), bad


def test_of_a_part_only_its_own_bytes_are_read(saved, monkeypatch):
    info = huggingface.inspect(saved)["layers.0.mlp.gate_proj.weight"]
    every, _ = info.read(np.dtype(np.float32))
    rows, columns = info.shape[0] // 2, info.shape[1] // 2
    part = (slice(rows, info.shape[0]), slice(0, columns))
    np.testing.assert_array_equal(info.read(every.dtype, part)[0], every[part])
    sizes = []
    read = tensors._read_into
    monkeypatch.setattr(tensors, "_read_into", lambda i, a: sizes.append(i.nbytes) or read(i, a))
    part = (slice(rows, info.shape[0]), slice(0, info.shape[1]))
    np.testing.assert_array_equal(info.read(every.dtype, part)[0], every[rows:])
    assert sizes == [info.nbytes - rows * info.nbytes // info.shape[0]]


@pytest.mark.parametrize("named", ["float64", "torch.bfloat16", "auto", None])
def test_the_dtype_that_a_config_names_decides_nothing(saved, named):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "torch_dtype": named}))
    assert_equal(values(Llama.from_pretrained(saved).model), loaded(saved))


def test_an_interrupt_while_loading_leaves_a_model_that_can_be_loaded(saved, monkeypatch):
    calls, read = [], tensors.TensorInfo.read

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read(*args)

    model = Model(CONFIG)
    with monkeypatch.context() as patched:
        patched.setattr(tensors.TensorInfo, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            huggingface.load(saved, model)
    huggingface.load(saved, model)
    assert_equal(values(model), loaded(saved))


# Errors


def error(directory, config=CONFIG):
    """The message of the error that loading gives; no weight may have been read by then."""
    model = Model(config)
    with pytest.raises(CheckpointError) as caught:
        huggingface.load(directory, model)
    slots = parameters(model).values()
    assert all(isinstance(slot.get_value(), jax.ShapeDtypeStruct) for slot in slots)
    return str(caught.value)


def test_a_path_that_is_not_there(tmp_path):
    for call in (huggingface.read_config, huggingface.inspect, huggingface.read_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"There is no .*meta-llama/Llama-3.1-8B"):
            call(tmp_path / "meta-llama/Llama-3.1-8B")


def test_a_folder_that_is_no_checkpoint_says_what_one_holds_and_what_it_has(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"no config.json.*model.safetensors.*has notes.txt"):
        huggingface.read_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*it has notes.txt"):
        huggingface.inspect(tmp_path)
    with pytest.raises(CheckpointError, match=r"notes.txt is a file"):
        huggingface.inspect(tmp_path / "notes.txt")


def test_a_config_that_is_not_json(saved):
    for content, what in (
        ("{", "config.json is not JSON"),
        ("[]", "config.json holds a list"),
        ("\xe9".encode("latin-1"), "config.json is not JSON"),
        ("[" * 100_000 + "]" * 100_000, "too deep in each other"),
        ('{"a": {"b": 1, "b": 2}}', "the name 'b' is twice in one object"),
        ("1" * 5000, "config.json is not JSON"),
        (" " * 64 * 2**20 + "{}", "has 67,108,866 bytes; settings have at most"),
    ):
        (saved / "config.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        with pytest.raises(CheckpointError, match=what):
            huggingface.read_config(saved)


def test_missing_surplus_and_misshapen_tensors_are_listed_with_both_shapes(saved):
    def spoil(held):
        del held["model.norm.weight"]
        held["model.layers.7.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        held[f"model.{K_PROJ}"] = np.zeros((16, 16), np.float32)

    rewrite(saved, spoil)
    message = error(saved)
    assert "norm.weight: not in the files, config says [16]" in message
    assert f"{K_PROJ}: file has [16, 16], config says [8, 16]" in message
    assert "layers.7.mlp.up_proj.weight: file has [24, 16], config has no such tensor" in message
    assert "Is num_key_value_heads right" in message


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_more_layers_than_the_files_have_tensors_is_refused_before_a_model_is_made(
    tmp_path, monkeypatch, format
):
    Llama(random_model()).save(tmp_path / "llama", format)
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    many = json.dumps({**config, "num_hidden_layers": 100_000})
    (tmp_path / "llama" / "config.json").write_text(many)
    monkeypatch.setattr("llama_jax.llama.Model", None)
    with pytest.raises(CheckpointError, match="says 100,000 layers, and the files have 21 tensors"):
        Llama.from_pretrained(tmp_path / "llama")


def test_a_header_with_a_name_twice_is_refused(saved):
    file = saved / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    entry = f'"{NORM}":' + json.dumps(json.loads(raw[8 : 8 + size])[NORM])
    header = (raw[8 : 8 + size].rstrip().removesuffix(b"}").decode() + "," + entry + "}").encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])
    assert "the name 'model.norm.weight' is twice in one object" in error(saved)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_config.json", r"is a LoRA adapter.*merge_and_unload.*base model is 'me/base'"),
        ("llama.Q4_K_M.gguf", "is GGUF, llama.cpp's format.*Open the checkpoint"),
        ("quantize_config.json", "is weights quantized by GPTQ"),
        ("quant_config.json", "is weights quantized by AWQ"),
        ("pytorch_model-00001-of-00002.bin", "is torch pickles.*save_pretrained"),
    ],
)
@pytest.mark.parametrize("config", [False, True], ids=["alone", "with a config"])
@pytest.mark.filterwarnings("ignore:.*LoRA adapter")
def test_what_is_no_checkpoint_of_this_kind_is_named_as_what_it_is(saved, name, says, config):
    (saved / "model.safetensors").unlink()
    (saved / name).write_text('{"base_model_name_or_path": "me/base"}')
    if not config:
        (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=says):
        Llama.from_pretrained(saved)


def test_a_gguf_file_is_named_as_what_it_is(tmp_path):
    (tmp_path / "llama.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"llama.gguf is GGUF.*A checkpoint is a folder"):
        Llama.from_pretrained(tmp_path / "llama.gguf")


def test_an_adapter_beside_a_whole_model_is_said_to_be_left_out(saved):
    (saved / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="LoRA adapter .* the model without it"):
        Llama.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("self_attn.q_proj.qweight", "quantized by GPTQ or AWQ"),
        ("mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "quantized by bitsandbytes"),
        ("mlp.up_proj.scales", "with their scales (MLX)"),
        ("mlp.up_proj.SCB", "quantized by bitsandbytes to 8 bits"),
        ("self_attn.q_proj.lora_A.weight", "These are a LoRA's"),
        ("self_attn.q_proj.bias", "attention_bias = true"),
        ("mlp.up_proj.bias", "mlp_bias = true"),
    ],
)
def test_tensors_tell_who_made_them(saved, name, says):
    rewrite(saved, lambda held: held.update({f"model.layers.0.{name}": np.zeros(4, np.float32)}))
    assert says in error(saved)


def test_long_lists_are_cut(saved):
    message = error(saved, dataclasses.replace(CONFIG, num_hidden_layers=6))
    assert message.count("not in the files") == 10
    assert f"… and {4 * 9 - 10} more" in message


def test_dtypes_that_are_not_read_are_named(saved):
    rewrite(saved, lambda held: held.update({f"model.{K_PROJ}": np.zeros((8, 16), np.int8)}))
    assert f"{K_PROJ}: file has I8, what is read is BF16, F16, F32, F64" in error(saved)
    float8 = np.zeros((8, 16), jnp.float8_e4m3fn)
    rewrite_raw = {f"model.{name}": value for name, value in values(random_model()).items()}
    save_file({**rewrite_raw, f"model.{K_PROJ}": float8}, saved / "model.safetensors")
    assert f"{K_PROJ}: file has F8_E4M3" in error(saved)


def test_the_head_may_be_missing_only_when_tied(saved):
    rewrite(saved, lambda held: held.pop("lm_head.weight"))
    assert "lm_head.weight: not in the files, config says [32, 16]" in error(saved)
    assert "tie_word_embeddings = true?" in error(saved)
    assert set(loaded(saved, TIED)) == set(parameters(Model(TIED)))


def test_a_head_beside_tied_embeddings_must_equal_them(saved):
    assert "differs from embed_tokens.weight, but config.json ties them" in error(saved, TIED)

    def tie(held):
        held["lm_head.weight"] = held["model.embed_tokens.weight"]

    rewrite(saved, tie)
    assert "lm_head.weight" not in loaded(saved, TIED)


def test_a_shard_that_is_missing(sharded):
    (sharded / sorted(os.listdir(sharded))[2]).unlink()
    assert "lacks 1 of the" in error(sharded)


def test_an_index_that_says_what_the_shards_do_not(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    last = content["weight_map"]["lm_head.weight"]
    first = content["weight_map"]["model.embed_tokens.weight"]
    assert first != last
    for name, file, message in (
        ("lm_head.weight", first, f"{first}: model.safetensors.index.json says it has lm_head"),
        ("lm_head.weight", "../x.safetensors", "no file name"),
        ("lm_head.weight", 3, "no file name"),
        ("lm_head.weight", "x" * 300, "lacks 1 of the"),
        ("lm_head.weight", "x\0y", "lacks 1 of the"),
    ):
        changed = {"weight_map": {**content["weight_map"], name: file}}
        index.write_text(json.dumps(changed))
        assert message in error(sharded)
    for text, message in (("{", "is not JSON"), ("{}", "has no weight_map")):
        index.write_text(text)
        assert message in error(sharded)


def test_a_tensor_in_two_shards(sharded):
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    rewrite(sharded, lambda held: held.update({"norm.weight": np.ones(16)}), files[0])
    assert "norm.weight is twice in" in error(sharded)


@pytest.mark.parametrize("keep", [-1, 50, 5, 0])
def test_a_file_that_was_cut_off(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "is not a whole safetensors file" in error(saved)


def test_a_git_lfs_pointer(saved):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (saved / "model.safetensors").write_text(pointer)
    assert "a Git LFS pointer?" in error(saved)


def test_a_model_that_does_not_fit_into_memory_is_not_read(saved, monkeypatch):
    monkeypatch.setattr("llama_jax.memory.device_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="GiB"):
        huggingface.load(saved, Model(CONFIG))


def test_dtype_names():
    assert as_dtype("bf16") == as_dtype("bfloat16") == as_dtype(jnp.bfloat16)
    assert as_dtype("f32") == as_dtype(np.float32)
    for bad in ("int8", "float8", "bf8", int, None, 3):
        with pytest.raises(DtypeError, match=r"bfloat16 \(bf16\), float16 \(f16\), float32"):
            as_dtype(bad)
    with pytest.raises(DtypeError, match="jax_enable_x64"):
        as_dtype("f64")


# Saving


def test_stop_tokens_and_their_files(tmp_path):
    huggingface.save(tmp_path / "llama", random_model(), stop_tokens=(3, 5))
    assert huggingface.read_stop_tokens(tmp_path / "llama") == (3, 5)
    (tmp_path / "llama" / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert huggingface.read_stop_tokens(tmp_path / "llama") == (7,)
    (tmp_path / "llama" / "generation_config.json").unlink()
    assert huggingface.read_stop_tokens(tmp_path / "llama") == (3, 5)
    huggingface.save(tmp_path / "llama", random_model())
    assert huggingface.read_stop_tokens(tmp_path / "llama") == ()
    assert huggingface.read_tokenizer(tmp_path / "llama") is None


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("ids", ["1793", [1793.5], ["<|eot_id|>"], True, -1, {}, 1.0])
def test_end_tokens_that_are_no_ids_are_refused(saved, name, ids):
    file = saved / name
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**settings, "eos_token_id": ids}))
    with pytest.raises(ConfigError, match=f"{name}: eos_token_id is .*; it must be a token id"):
        Llama.from_pretrained(saved)


def test_other_fields_of_the_generation_config_are_checked_too(saved):
    (saved / "generation_config.json").write_text('{"temperature": "0.6", "mine": {}}')
    with pytest.raises(ConfigError, match=r"temperature is '0.6'; it must be a number"):
        Llama.from_pretrained(saved)


def test_an_end_token_that_the_vocabulary_does_not_have_is_said(saved):
    (saved / "generation_config.json").write_text('{"eos_token_id": [3, 32]}')
    with pytest.warns(UserWarning, match="eos_token_id has 32, and the vocabulary is 0 to 31"):
        Llama.from_pretrained(saved)


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_other_files(sharded):
    (sharded / "README.md").write_text("mine")
    (sharded / "original").mkdir()
    (sharded / "original" / "params.json").write_text("{}")
    (sharded / "adapter_model.safetensors").write_text("")
    (sharded / "link").symlink_to("README.md")
    other = random_model(seed=1)
    huggingface.save(sharded, other)
    assert sorted(os.listdir(sharded)) == [
        "README.md",
        "adapter_model.safetensors",
        "config.json",
        "link",
        "model.safetensors",
        "original",
    ]
    assert (sharded / "link").is_symlink() and (sharded / "link").read_text() == "mine"
    assert (sharded / "original" / "params.json").read_text() == "{}"
    assert_equal(loaded(sharded), values(other))
    assert os.listdir(sharded.parent) == ["sharded"]


def test_a_model_can_be_saved_over_the_files_it_came_from(saved):
    model = Model(CONFIG)
    huggingface.load(saved, model)
    huggingface.save(saved, model)
    assert_equal(loaded(saved), values(model))


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "when", ["weights", "second shard", "flush", "mark", "rename", "fourth rename", "link"]
)
def test_after_an_error_or_an_interrupt_the_old_checkpoint_is_whole(
    saved, monkeypatch, problem, when
):
    (saved / "README.md").write_text("mine")
    before = snapshot(saved)
    calls = []

    def fail(*args, **kwargs):
        raise problem

    def fail_second(*args, **kwargs):
        calls.append(args)
        return save_file(*args, **kwargs) if len(calls) < 2 else fail()

    if when.endswith("rename"):  # some entries are in place already, the others not yet
        rename, nth = type(saved).rename, 4 if when.startswith("fourth") else 2
        monkeypatch.setattr(
            type(saved),
            "rename",
            lambda self, to: (
                fail() if calls.append(self) or len(calls) == nth else rename(self, to)
            ),
        )
    else:
        module, name, replacement = {
            "weights": (huggingface, "save_file", fail),
            "second shard": (huggingface, "save_file", fail_second),
            "flush": (replacing, "_flush", fail),
            "mark": (replacing, "_marked", fail),
            "link": (replacing, "_linked", fail),
        }[when]
        monkeypatch.setattr(module, name, replacement)
    with pytest.raises(type(problem)):
        huggingface.save(saved, random_model(seed=1), max_shard_bytes=4000)
    monkeypatch.undo()
    assert snapshot(saved) == before
    assert os.listdir(saved.parent) == ["llama"]


def test_files_are_kept_where_there_are_no_hard_links(saved, monkeypatch):
    def unsupported(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(os, "link", unsupported)
    (saved / "README.md").write_text("mine")
    huggingface.save(saved, random_model())
    assert (saved / "README.md").read_text() == "mine"


def test_only_checkpoints_and_empty_folders_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"no checkpoint to replace; it has chapter.tex"):
        huggingface.save(tmp_path / "thesis", random_model())
    with pytest.raises(CheckpointError, match="is a file"):
        huggingface.save(tmp_path / "thesis" / "chapter.tex", random_model())
    assert os.listdir(tmp_path) == ["thesis"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deeper"):
        huggingface.save(tmp_path / name, random_model())
        assert_equal(loaded(tmp_path / name), values(random_model()))


def test_an_abstract_model_has_nothing_to_save(tmp_path):
    with pytest.raises(CheckpointError, match="abstract"):
        huggingface.save(tmp_path / "llama", Model(CONFIG))
    assert not (tmp_path / "llama").exists()


def test_a_link_to_a_checkpoint_stays_a_link(saved):
    link = saved.with_name("latest")
    link.symlink_to(saved.name)
    huggingface.save(link, random_model(seed=1))
    assert link.is_symlink()
    assert_equal(loaded(saved), values(random_model(seed=1)))


def test_weights_have_the_permissions_that_other_files_have(saved):
    modes = {path.name: oct(path.stat().st_mode) for path in saved.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
