"""A folder's tokenizer files, put together as transformers' `AutoTokenizer` does (5.24).

`tokenizer.json` says nearly all. `tokenizer_config.json` names tokens, adds some, and changes what
takes the space beside them; which of both counts where they disagree is decided here, once, so that
the ids of a text are those that the model has learnt from.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from llama_jax.text.backends import Backend, TokenError, TokenizersBPE
from llama_jax.text.meta import TiktokenBPE, read_ranks

__all__ = ["NAMED", "open_tokenizer", "token_name"]

#: The parts that a token can be given, in transformers' order.
NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def open_tokenizer(path: pathlib.Path) -> tuple[Backend, dict[str, Any]]:
    """What the file holds, whatever its name, and the settings of the files beside it.

    Raises `TokenError` that names the file and the field for what cannot be read.
    """
    content = _content(path)
    config, older = _settings(path)
    if not content.lstrip().startswith(b"{"):
        return TiktokenBPE(read_ranks(content, os.fspath(path))), config
    bpe = _from_buffer(content, path)
    listed = bpe.get_added_tokens_decoder()
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    # Many files of Llama 3 name Llama 2's class; transformers too reads those as they are.
    misnamed = kind == "LlamaTokenizer" and b'"ByteLevel"' in content
    if kind in _BUILT and isinstance(bpe.model, models.BPE) and not misnamed:
        bpe, missing = _BUILT[kind](bpe, json.loads(content)["model"], config)
        config = missing | config
    bpe.add_tokens(_added(bpe, config, older | listed))
    try:
        return TokenizersBPE(bpe), config
    except TokenError as error:
        raise TokenError(f"{path}: {error}") from None


def token_name(value: Any) -> str | None:
    """The name of a token, which may be given with options."""
    return value["content"] if isinstance(value, Mapping) else value


# Reading


def _content(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the mark that some editors write
    except OSError as error:
        raise TokenError(f"{path} is not a readable tokenizer: {error.strerror}.") from None


def _from_buffer(content: bytes, path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:  # `tokenizers` raises nothing more special, and may panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenError(f"{path} is not a readable tokenizer.json: {error}.") from None


def _parsed(content: bytes, path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except RecursionError:
        raise TokenError(
            f"{path} is not a readable tokenizer: its values are nested too deeply."
        ) from None
    except ValueError as error:  # also for what is not Unicode
        raise TokenError(f"{path} is not a readable tokenizer: no JSON, {error}.") from None
    if not isinstance(found, dict):
        raise TokenError(f"{path} holds a {type(found).__name__}; it must be settings by name.")
    return found


def _settings(tokenizer: pathlib.Path) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """The content of the files beside a tokenizer's, each field checked.

    The tokens of `added_tokens.json`, by their ids, are given apart.
    """
    path = tokenizer.with_name("tokenizer_config.json")
    config = _parsed(_content(path), path) if path.is_file() else {}
    _check_fields(config, path)
    older: dict[int, AddedToken] = {}
    if "added_tokens_decoder" not in config:  # as written since 2023; the other files are older
        path = tokenizer.with_name("special_tokens_map.json")
        tokens = _parsed(_content(path), path) if path.is_file() else {}
        _check_fields(tokens, path)
        for part, token in tokens.items():
            if part in NAMED and isinstance(token, dict):
                token = token | {"__type": "AddedToken", "special": True}
            if part.endswith(("_token", "_tokens")):
                config[part] = token
        path = tokenizer.with_name("added_tokens.json")
        special = {token_name(config[part]) for part in NAMED if config.get(part)}
        for name, id in (_parsed(_content(path), path) if path.is_file() else {}).items():
            _check(path, name, id, "a whole number", type(id) is int and id >= 0)
            older[id] = AddedToken(name, normalized=name not in special, special=name in special)
    path = tokenizer.with_name("chat_template.jinja")  # counts before one in the config
    if path.is_file():
        try:
            config["chat_template"] = _content(path).decode()
        except UnicodeDecodeError as error:
            raise TokenError(
                f"{path} is not UTF-8: byte 0x{path.read_bytes()[error.start]:02X} at "
                f"{error.start}. Save it as UTF-8."
            ) from None
    return config, older


def _check_fields(config: dict[str, Any], path: pathlib.Path) -> None:
    for field, value in config.items():
        if field in NAMED:
            _check(path, field, value, "a token or null", value is None or _is_token(value))
        elif field in _FIELDS and value is not None:
            _check(path, field, value, *_FIELDS[field](value))


def _check(path: pathlib.Path, field: str, value: Any, kind: str, fits: bool) -> None:
    if not fits:
        said = repr(value) if isinstance(value, int | float | str) else type(value).__name__
        raise TokenError(f"{path}: {field} is {said[:80]}; it must be {kind}.")


_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _is_token(value: Any) -> bool:
    """A name, or a name with options."""
    if not isinstance(value, dict):
        return isinstance(value, str)
    options = {name: option for name, option in value.items() if name not in ("content", "__type")}
    return isinstance(value.get("content"), str) and all(
        name in _OPTIONS and isinstance(option, bool) for name, option in options.items()
    )


def _is_decoder(value: Any) -> bool:
    return isinstance(value, dict) and all(
        id.isdecimal() and id.isascii() and isinstance(token, dict) and _is_token(token)
        for id, token in value.items()
    )


def _is_tokens(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list) and all(map(_is_token, items))


_FIELDS: dict[str, Callable[[Any], tuple[str, bool]]] = {
    "tokenizer_class": lambda v: ("text", isinstance(v, str)),
    "added_tokens_decoder": lambda v: ("tokens with options by their ids", _is_decoder(v)),
    "additional_special_tokens": lambda v: ("a list of tokens", _is_tokens(v)),
    "extra_special_tokens": lambda v: ("a list of tokens", _is_tokens(v)),
    "add_prefix_space": lambda v: ("true or false", isinstance(v, bool)),
    "legacy": lambda v: ("true or false", isinstance(v, bool)),
}


# Tokens that the config adds


def _token(value: Any) -> AddedToken:
    """What is a name alone is special."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    options = {name: value[name] for name in _OPTIONS if name in value}
    return AddedToken(value["content"], **options)


def _added(
    bpe: tokenizers.Tokenizer, config: dict[str, Any], in_files: dict[int, AddedToken]
) -> list[AddedToken]:
    """The tokens to add, in the order that gives new ones their ids; a known one gets its options.

    By transformers' `TokenizersBackend.__init__` and `_from_pretrained`.
    """
    listed = _listed(config, in_files)
    by_name = {token.content: token for token in listed}
    named: dict[str, AddedToken] = {}
    for part in (*NAMED, *(field for field in config if field not in NAMED)):
        value = config.get(part)
        # Other tokens with a part of their own, as "image_token", are told by how they are given.
        given = isinstance(value, str) or (isinstance(value, dict) and "__type" in value)
        if part in NAMED and value is not None:
            named[part] = by_name.get(token_name(value) or "") or _token(value)
        elif part not in NAMED and part.endswith("_token") and given and _is_token(value):
            named[part] = _token(value)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= {part: _token(value) for part, value in extra.items()}
        extra = []
    names = {token.content for token in named.values()}
    for token in listed:
        token.special = token.special or token.content in names
    known_names = {token.content for token in bpe.get_added_tokens_decoder().values()}
    known_names |= set(by_name)
    made = list(listed)
    for token in (*named.values(), *map(_token, extra)):
        if token.content not in known_names:
            known_names.add(token.content)
            token.special = token.special or token.content in names
            made.append(token)
    return made


def _listed(config: dict[str, Any], in_files: dict[int, AddedToken]) -> list[AddedToken]:
    """The tokens that the files list with their ids, in the order of those."""
    if config.get("added_tokens_decoder") is not None:
        decoder = config["added_tokens_decoder"]
        return [_token(decoder[id]) for id in sorted(decoder, key=int)]
    return [in_files[id] for id in sorted(in_files)]


# Classes of transformers that take of a tokenizer.json the vocabulary and the merges only


def _bpe(
    original: tokenizers.Tokenizer, model: dict[str, Any], **options: Any
) -> tokenizers.Tokenizer:
    vocabulary = original.get_vocab(with_added_tokens=False)
    merges: Any = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, [*map(tuple, merges)], **options))
    if original.post_processor is not None:
        bpe.post_processor = original.post_processor
    return bpe


_Built = tuple[tokenizers.Tokenizer, dict[str, Any]]  # and the names of tokens it has by default


def _llama(original: tokenizers.Tokenizer, model: dict[str, Any], config: dict[str, Any]) -> _Built:
    bpe = _bpe(original, model, fuse_unk=True, byte_fallback=True)
    space = config.get("add_prefix_space")
    prefixed = True if space is None else space
    scheme = "always" if config.get("legacy", False) else "first"
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=scheme if prefixed else "never", split=False
    )
    stages = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        stages.append(decoders.Strip(" ", 1, 0))
    bpe.decoder = decoders.Sequence(stages)
    return bpe, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def _gpt2(original: tokenizers.Tokenizer, model: dict[str, Any], config: dict[str, Any]) -> _Built:
    bpe = _bpe(original, model, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space"))
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe, dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")


_BUILT: dict[str, Callable[[tokenizers.Tokenizer, dict[str, Any], dict[str, Any]], _Built]] = {
    "LlamaTokenizer": _llama,
    "GPT2Tokenizer": _gpt2,
}
