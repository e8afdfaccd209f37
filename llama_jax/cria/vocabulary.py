"""The vocabulary of cria: byte-level BPE as Llama 3 has it, only smaller."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from llama_jax.text.meta import LLAMA3_SPLIT

#: The 256 special tokens of Llama 3.1 in the order of their ids.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
)


class VocabularyError(ValueError):
    """The texts cannot give the vocabulary that was asked for."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` ids: 256 bytes, the merges, then the special tokens.

    The same texts in the same order give the same tokenizer. Special tokens that stand in the
    texts are not learnt from.

    Raises VocabularyError where `vocab_size` leaves no room for the bytes and the special tokens,
    or where the texts run out of pairs to merge.

    >>> tokenizer = train_tokenizer(["the mill by the lake, the lamp in the mill"], vocab_size=528)
    >>> tokenizer.get_vocab_size(), tokenizer.token_to_id("<|begin_of_text|>")
    (528, 272)
    >>> tokenizer.decode(tokenizer.encode("the lamp ✓").ids)
    'the lamp ✓'
    """
    merged = vocab_size - len(SPECIAL_TOKENS)
    if merged < 256:
        least = 256 + len(SPECIAL_TOKENS)
        raise VocabularyError(
            f"vocab_size is {vocab_size}, but 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"need {least}: ask for at least {least}"
        )
    tokenizer = _byte_level(models.BPE(ignore_merges=True))
    trainer = trainers.BpeTrainer(
        vocab_size=merged,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_special(texts), trainer)
    found = tokenizer.get_vocab_size()
    if found != merged:
        raise VocabularyError(
            f"the texts give {found - 256} merges, vocab_size {vocab_size} asks for "
            f"{merged - 256}: give more texts, or ask for vocab_size={found + len(SPECIAL_TOKENS)}"
        )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
    return tokenizer


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _without_special(texts: Iterable[str]) -> Iterator[str]:
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    for text in texts:
        yield from filter(None, special.split(text))
