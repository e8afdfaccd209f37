"""The small model that peers are measured on, in a folder that they open."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from llama_jax import Llama, LlamaConfig
from llama_jax.config import RopeScaling
from llama_jax.cria import WEIGHTS


def small(layers: int = 12, hidden: int = 512) -> LlamaConfig:
    """37 M parameters as it stands: 8 heads on 2 KV heads, a vocabulary of 2,048."""
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=hidden // 8,
        rope_scaling=RopeScaling(factor=8.0),
        max_position_embeddings=131072,
    )


@contextlib.contextmanager
def saved(llama: Llama) -> Iterator[str]:
    """A folder with its weights and a tokenizer, which peers want to see, until the block ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        llama.save(folder)
        for file in WEIGHTS.glob("tokenizer*"):
            shutil.copy(file, folder)
        yield folder


def in_torch(folder: str) -> Any:
    """The model in transformers, f32, with the attention that gives its patterns."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def in_transformer_lens(folder: str) -> Any:
    """The model in TransformerLens 4, its weights as they are."""
    import torch
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        folder,
        hf_model=in_torch(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        device="cpu",
        dtype=torch.float32,
    )
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return model
