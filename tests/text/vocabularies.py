"""Tokenizers of a few hundred tokens in the manner of other Llamas' files, trained here."""

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "When Mary and John went to the shop, John gave a drink to Mary.",
    "Mary, Mary and Mary saw that it wasn't John's; he'd paid 1250 for it.",
    "def f(x):\n    return x ** 2  # ünïcode\n\n\tünïcode",
]
MARK = "\u2581"  # SentencePiece's for a space
SENTENCEPIECE_DECODER = [
    decoders.Replace(MARK, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def byte_level(pre_tokenizer=None, size=400, special=("<|endoftext|>", "<|im_start|>")):
    """As SmolLM's: digits one by one, then GPT-2's words."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=list(special),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


def sentencepiece(scheme="normalizer", size=420, decoder=None):
    """As TinyLlama's: SentencePiece's BPE, whose unknown characters are bytes.

    `scheme` says who puts the space before a text: a normalizer, as in files of Llama 2, or a
    pre-tokenizer's prepend_scheme.
    """
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(
        [text.replace("ü", "").replace("ï", "") for text in TEXTS * 3],
        trainers.BpeTrainer(vocab_size=size, special_tokens=names, show_progress=False),
    )
    made = tokenizers.Tokenizer.from_str(learner.to_str())
    model = made.model
    model.byte_fallback, model.fuse_unk = True, True
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoder or decoders.Sequence(SENTENCEPIECE_DECODER)
    return made
