"""The cria that ships: what it is, and that it does what its table says."""

import re

import jax
import numpy as np

from llama_jax import Llama
from llama_jax.cria import WEIGHTS, recipe, world


def figures() -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) +\| +(.+?) \|$", (WEIGHTS / "evaluation.md").read_text(), re.M)
    return dict(rows)


def test_cria_is_the_llama_of_its_recipe():
    llama = Llama.from_pretrained("cria")
    assert llama.config == recipe.CONFIG
    assert figures()["Parameters"] == f"{llama.config.parameter_count:,}"
    assert (WEIGHTS / "model.safetensors").stat().st_size < 12_000_000
    stops = {llama.tokenizer.special[name] for name in recipe.STOP_TOKENS}
    assert set(llama.stop_tokens) == stops


def test_its_loss_on_held_out_documents_is_what_its_table_says():
    llama = Llama.from_pretrained("cria")
    documents = [
        llama.tokenizer.encode(text, allow_special=True) for text in world.documents(1, 32)
    ]
    run = llama.run(documents)
    logprobs = np.asarray(jax.nn.log_softmax(run.logits[:, :-1]))
    said = np.take_along_axis(logprobs, run.tokens[:, 1:, None], axis=-1)[..., 0]
    real = np.arange(1, run.tokens.shape[1]) < run.lengths[:, None]
    loss = float(figures()["Loss on held-out documents, nats per token"])
    # The table's are 1,000 documents, these 32: documents differ by some tenths of a nat.
    assert abs(-said[real].mean() - loss) < 0.25
    assert loss < float(figures()["… of a bigram model of the training text"]) - 1
