"""JSON files that hold anything: what opens them says what is wrong in our own exceptions."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_jax import Llama, LlamaConfig
from llama_jax.checkpoint import CheckpointError, huggingface, meta
from llama_jax.config import ConfigError
from llama_jax.config_json import _HUGGINGFACE, _META, _ROPE
from tests.checkpoint.test_huggingface import random_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:config.json"),
    pytest.mark.filterwarnings("ignore:.*eos_token_id has"),
]
OURS = (ConfigError, CheckpointError)

# Half of the numbers lie where ranges end.
EDGES = (0, -1, 1, 2, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"))
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(EDGES)
    | st.text(max_size=8)
)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
VALID = random_model().config.to_huggingface() | {"eos_token_id": [3], "torch_dtype": "float32"}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
PARAMS = {"dim": 16, "n_layers": 2, "n_heads": 4, "vocab_size": 32, "use_scaled_rope": True}


def changed(valid, names):
    """The settings with a few of `names` set to anything, and a few left out."""
    some = st.dictionaries(st.sampled_from(sorted(names)) | st.text(max_size=8), ANYTHING)
    without = st.sets(st.sampled_from(sorted(valid)), max_size=2)
    return st.builds(
        lambda new, gone: {k: v for k, v in {**valid, **new}.items() if k not in gone},
        some,
        without,
    )


def many(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,  # the same ones every time, on every machine
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def opened(call, *arguments):
    """Whether it went well; any exception but ours is the test's failure."""
    try:
        call(*arguments)
    except OURS as error:
        assert str(error)
        return False
    return True


@many(300)
@given(changed(VALID, _HUGGINGFACE))
def test_any_config_json_is_a_config_or_an_error_of_ours(config):
    opened(LlamaConfig.from_huggingface, config)


@many(200)
@given(changed(SCALING, _ROPE), st.sampled_from(["rope_scaling", "rope_parameters"]))
def test_any_rotary_scaling_is_a_config_or_an_error_of_ours(scaling, name):
    opened(LlamaConfig.from_huggingface, {**VALID, name: scaling})


@many(200)
@given(changed(PARAMS, _META))
def test_any_params_json_is_a_config_or_an_error_of_ours(params):
    opened(LlamaConfig.from_meta, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "sharded"
    huggingface.save(folder, random_model(), max_shard_bytes=4000)
    return folder


@many(60)
@given(changed(VALID, _HUGGINGFACE))
def test_a_checkpoint_with_any_config_json_opens_or_says_why_not(folder, config):
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    opened(Llama.from_pretrained, folder)


@many(100)
@given(ANYTHING | changed({"eos_token_id": 3}, ["eos_token_id", "temperature", "pad_token_id"]))
def test_any_generation_config_is_read_or_says_why_not(folder, content):
    (folder / "generation_config.json").write_text(json.dumps(content))
    opened(huggingface.read_stop_tokens, folder)


@many(100)
@given(st.data())
def test_any_index_is_read_or_says_why_not(folder, data):
    huggingface.save(folder, random_model(), max_shard_bytes=4000)
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names, files = [*index["weight_map"], "x"], [*set(index["weight_map"].values()), "", ".", "a/b"]
    some = st.dictionaries(st.sampled_from(names), st.sampled_from(files) | ANYTHING, max_size=3)
    new = data.draw(
        ANYTHING
        | st.builds(lambda m: {"weight_map": {**index["weight_map"], **m}}, some)
        | st.builds(lambda m: {"weight_map": m}, ANYTHING)
    )
    file.write_text(json.dumps(new))
    opened(huggingface.inspect, folder)


@many(100)
@given(st.binary(max_size=40) | st.builds(lambda x: json.dumps(x).encode(), ANYTHING))
def test_any_bytes_are_settings_or_an_error_of_ours(folder, data):
    for name in ("config.json", "generation_config.json", "params.json"):
        (folder / name).write_bytes(data)
    opened(huggingface.read_config, folder)
    opened(huggingface.read_stop_tokens, folder)
    opened(meta.read_config, folder, [{}])
    (folder / "params.json").unlink()
