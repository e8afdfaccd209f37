"""Checkpoints from the Hugging Face hub: what is needed of a repository, in the hub's own cache.

The only place of this package that uses the network, and only when a user names a repository.
"""

from __future__ import annotations

import os
import pathlib
import re

from llama_jax.checkpoint.tensors import CheckpointError

__all__ = ["download", "is_hub_id"]

# Weights and what goes with them; no other framework's files, and none in folders below.
_NEEDED = (
    "config.json",
    "adapter_config.json",  # tells a LoRA from a model
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """Whether it reads as `owner/name`, and no folder has that name.

    >>> is_hub_id("meta-llama/Llama-3.2-1B"), is_hub_id("./llama"), is_hub_id("/data/llama")
    (True, False, False)
    """
    text = os.fspath(path)
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text)
    return isinstance(path, str) and named is not None and not pathlib.Path(text).exists()


def download(repository: str, revision: str | None = None) -> pathlib.Path:
    """The folder of a repository's checkpoint in the cache, downloaded where it is not there yet.

    The access token is `HF_TOKEN`, or that of `hf auth login`. `revision` is a branch, a tag or a
    commit. Raises `CheckpointError` for a repository or revision that is not there or not open to
    the token, and, at once, where there is no network.
    """
    import huggingface_hub  # only who downloads should pay for the import
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(_NEEDED), ignore_patterns=["*/*"]
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repository} is gated: its owner lets in who has asked. Accept its licence on "
            f"https://huggingface.co/{repository}, then put an access token into HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder {repository} here, and the hub has no such repository, or not for "
            "this access token (HF_TOKEN). Is the name right?"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r}.") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"There is no folder {repository} here, {repository} is not in the hub's cache, and "
            f"the hub cannot be reached: {str(error).splitlines()[0][:200]}"
        ) from None
    names = os.listdir(folder)
    if not any(name.endswith(".safetensors") or name == "adapter_config.json" for name in names):
        raise CheckpointError(
            f"{repository} has no safetensors. GGUF and torch pickles are not read: open the "
            "repository that they were made from, or write safetensors with transformers."
        )
    return pathlib.Path(folder)
