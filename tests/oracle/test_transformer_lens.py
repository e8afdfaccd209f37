"""Every point, with and without edits, against TransformerLens on the same weights, in f32."""

import functools
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from llama_jax import Ablate, Llama, Patch, Replace, Steer
from llama_jax.cria import WEIGHTS
from llama_jax.points import POINTS
from tests.oracle.test_transformers import reference, variant

TOKENS = np.random.default_rng(3).integers(0, 96, (2, 60))
OTHERS = np.random.default_rng(4).integers(0, 96, (2, 60))
ALIASES = [point.alias.format(i=1) for point in POINTS if point.alias is not None]
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}


@pytest.fixture(scope="module", params=["MHA", "GQA", "MQA"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tying = "tied" if request.param == "GQA" else "untied"
    config = variant(request.param, tying, "factor8", "own_head_dim")
    torch_model = reference(config)
    torch_model.save_pretrained(folder)
    ours = Llama.from_pretrained(folder)
    for file in WEIGHTS.glob("tokenizer*"):  # it wants one, and is given tokens all the same
        shutil.copy(file, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = TransformerBridge.boot_transformers(
        str(folder), hf_model=torch_model, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    theirs.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    theirs.set_use_attn_result(True)
    return ours, theirs


def cached(theirs, tokens=TOKENS, hooks=()):
    with torch.no_grad(), theirs.hooks(fwd_hooks=list(hooks)):
        logits, cache = theirs.run_with_cache(torch.tensor(tokens))
    return logits.numpy(), cache


def compare(run, logits, cache, aliases=ALIASES):
    np.testing.assert_allclose(run.logits, logits, **TOLERANCE)
    for alias in aliases:
        mine, other = np.asarray(run[alias]), cache[alias].numpy()
        if alias.endswith("attn_scores"):
            seen = np.isfinite(mine)
            assert (other[~seen] < -1e30).all()
            mine, other = mine[seen], other[seen]
        np.testing.assert_allclose(mine, other, err_msg=alias, **TOLERANCE)


def test_every_point_that_both_name_is_the_same(pair):
    ours, theirs = pair
    compare(ours.run(TOKENS, "*"), *cached(theirs))


def test_ablated_heads(pair):
    ours, theirs = pair

    def silence(z, hook):
        z[:, :, [0, 2]] = 0
        z[:, 5:9, 1] = z[:, :, 1].mean((0, 1))
        return z

    edits = [
        Ablate(("z", 1), heads=[0, 2]),
        Ablate(("z", 1), heads=1, positions=slice(5, 9), to="mean"),
    ]
    run = ours.run(TOKENS, "*", edits=edits)
    compare(run, *cached(theirs, hooks=[("blocks.1.attn.hook_z", silence)]))


def test_patched_stream_and_values(pair):
    ours, theirs = pair
    donor = ours.run(OTHERS, ("resid_pre", "v"))
    _, other = cached(theirs, OTHERS)

    def stream(x, hook):
        x[:, [3, 40]] = other["blocks.1.hook_resid_pre"][:, [3, 40]]
        return x

    def values(v, hook):
        v[:, :, 0] = other["blocks.0.attn.hook_v"][:, :, 0]
        return v

    edits = [Patch(("resid_pre", 1), donor, positions=[3, 40]), Patch(("v", 0), donor, heads=[0])]
    hooks = [("blocks.1.hook_resid_pre", stream), ("blocks.0.attn.hook_v", values)]
    compare(ours.run(TOKENS, "*", edits=edits), *cached(theirs, hooks=hooks))


def test_steered_stream_and_replaced_pattern_and_neurons(pair):
    ours, theirs = pair
    vector = np.random.default_rng(5).standard_normal(32).astype(np.float32)

    def steer(x, hook):
        x[:, -1] += 1.5 * torch.tensor(vector)
        return x

    def uniform(pattern, hook):
        return torch.tril(torch.ones_like(pattern)) / torch.arange(1, 61)[:, None]

    def flat(pattern):
        return jnp.tril(jnp.ones_like(pattern)) / jnp.arange(1, 61)[:, None]

    edits = [
        Steer(("resid_pre", 1), vector, 1.5, positions=-1),
        Replace(("pattern", 0), flat),
        Replace(("mlp.act", 1), lambda act: act * 0.5),
    ]
    hooks = [
        ("blocks.1.hook_resid_pre", steer),
        ("blocks.0.attn.hook_pattern", uniform),
        ("blocks.1.mlp.hook_post", lambda act, hook: act * 0.5),
    ]
    compare(ours.run(TOKENS, "*", edits=edits), *cached(theirs, hooks=hooks))


def test_gradients_of_points(pair):
    ours, theirs = pair
    found = ours.gradients(TOKENS, lambda x: x[:, 3] - x[:, 7], ("resid_pre", "z", "act"))
    names = [f"blocks.1.{n}" for n in ("hook_resid_pre", "attn.hook_z", "mlp.hook_post")]
    kept = {}

    def keep(x, hook, name):
        x.retain_grad()
        kept[name] = x
        return x

    hooks = [(name, functools.partial(keep, name=name)) for name in names]
    logits = theirs.run_with_hooks(torch.tensor(TOKENS), fwd_hooks=hooks)
    (logits[:, -1, 3] - logits[:, -1, 7]).sum().backward()
    for name in names:
        np.testing.assert_allclose(found[name], kept[name].grad.numpy(), **TOLERANCE)
