"""`Llama`: a model, its tokenizer and how it stops, in one handle."""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llama_jax import generate as writing
from llama_jax import gradients as differentiating
from llama_jax import run as running
from llama_jax.base.choice import integer
from llama_jax.base.replacing import as_path
from llama_jax.capture import Captures, of_prompt, wanted
from llama_jax.checkpoint import hub, huggingface, meta, orbax
from llama_jax.checkpoint.folder import check_unchanged, existing, stamps
from llama_jax.config import LlamaConfig
from llama_jax.cria import WEIGHTS as CRIA
from llama_jax.dtypes import as_dtype
from llama_jax.edits import Edit
from llama_jax.generate import Generation, Step
from llama_jax.gradients import Gradients
from llama_jax.memory import check_fits, device_memory
from llama_jax.metrics import Metric
from llama_jax.model import Logits, Model, initialize, leaf_numbers
from llama_jax.model.tap import EditError
from llama_jax.parallel import Placement, make_mesh, parts, placement
from llama_jax.plan import Plan, plan
from llama_jax.points import Points, resolve_weights
from llama_jax.prompts import Prompt, PromptError, Rows, read
from llama_jax.run import Run
from llama_jax.sampling import Sampling
from llama_jax.text import (
    ENDS,
    ChatError,
    Reply,
    TokenError,
    Tokenizer,
    Tool,
    ToolFormat,
    chat_prompt,
    encode_chat,
    read_reply,
)

__all__ = ["Llama", "Prompt", "PromptError", "Rows"]

# Sizes by axis, or in text; None is what is needed of the devices that are there.
MeshLike = Mapping[str, int] | str | Mesh | None


@dataclasses.dataclass(eq=False, repr=False)
class Llama:
    """A Llama 3 that can be run, looked into, and asked to write.

    Made by `Llama.from_pretrained`, `Llama.random` or `Llama.abstract`.

    >>> llama = Llama.from_pretrained("cria")
    >>> llama.pieces(llama.tokens("Once upon a time"))
    ['<|begin_of_text|>', 'Once', ' upon', ' a', ' time']
    """

    model: Model
    tokenizer: Tokenizer | None = None
    stop_tokens: tuple[int, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None:  # many vocabularies are padded to a round number
            self.tokenizer = self.tokenizer.padded(self.config.vocab_size)

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    @property
    def mesh(self) -> Mesh | None:
        """The devices that share out weights, cache, batch and captures; None on one device."""
        return self.model.mesh

    @property
    def dtype(self) -> jnp.dtype:
        """What is computed in: the embedding's dtype, whatever other weights are stored in."""
        return self.model.dtype

    @property
    def device_count(self) -> int:
        """How many devices it uses."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def placement(self) -> Placement:
        """Which device holds which heads, neurons and tokens, and how many bytes of weights.

        >>> Llama.abstract("llama-3.1-70b", mesh={}).placement.rows[0].heads
        (0, 64)
        """
        return placement(self.config, self.mesh, jax.tree.leaves(self.model))

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: Any = None,
        config: LlamaConfig | None = None,
        revision: str | None = None,
        mesh: MeshLike = None,
    ) -> Llama:
        """Opens a checkpoint on disk or from the hub, or `"cria"`, the small Llama that ships.

        `path` is a folder in one of three formats, told by what is in it: Hugging Face's
        (`config.json` and safetensors, one file or shards with an index), Meta's (`params.json` and
        `consolidated.XX.pth` of any number of ranks; needs torch), or what `save` wrote with
        `format="orbax"`. Tokenizer and generation config are read where they lie beside. `dtype`
        casts the weights as they are read; by default they stay as stored. `config` overrules what
        the files say, for what Meta's `params.json` cannot (`LlamaConfig.from_meta`).

        A name such as `"meta-llama/Llama-3.2-1B"`, where no folder is called so, is a repository of
        the Hugging Face hub: its config, safetensors and tokenizer are downloaded into the hub's
        cache, at `revision`, with the access token in `HF_TOKEN`. Nothing else uses the network.

        `mesh` says which devices share out what: `"tensor=8"`, or `{"data": 2, "tensor": 4}`
        (`llama_jax.parallel`). None is one device where the model fits on it, else all local ones
        on `tensor`. Each part of a weight is read straight to where it belongs.

        Everything is checked before any weight is read and any model is made; raises
        `CheckpointError` (what is wrong with the files, or what they are instead), `ConfigError`
        (a field of the wrong type, or what this model does not do), `MeshError`,
        `FileNotFoundError`, `MemoryError`. A warning names keys of `config.json` that are ignored
        as transformers ignores them, end tokens that the vocabulary has not, and weights that are
        not finite.
        """
        as_path(path)
        if os.fspath(path) == "cria":
            folder = CRIA
        elif hub.is_hub_id(path):
            folder = hub.download(os.fspath(path), revision)
        else:
            folder = existing(path)
        before = stamps(folder)
        wanted = None if dtype is None else as_dtype(dtype)
        config = None if config is None else _config(config)
        tokenizer = huggingface.read_tokenizer(folder)  # before the weights: errors come early
        stops = huggingface.read_stop_tokens(folder)
        if meta.is_meta(folder):
            ranks = meta.inspect(folder)
            config = config or meta.read_config(folder, ranks)
            stops = stops or meta.stop_tokens(folder, config, tokenizer)
            sources = meta.checked(folder, config, ranks)
            model = Model(config, jnp.float32, _mesh(mesh, config, wanted or jnp.bfloat16))
            meta.load(folder, model, ranks, wanted, sources=sources)
        else:
            said = huggingface.read_config(folder)
            config = config or LlamaConfig.from_huggingface(said)
            wide = (said.get("dtype") or said.get("torch_dtype")) in ("float32", "float64")
            stored = wanted or (jnp.float32 if wide else jnp.bfloat16)
            files = orbax if orbax.is_orbax(folder) else huggingface
            tensors = files.checked(folder, config)  # before a model of any size is made
            model = Model(config, jnp.float32, _mesh(mesh, config, stored))
            files.load(folder, model, wanted, tensors=tensors)
        check_unchanged(folder, before)
        _check_stops(folder, stops, config)
        named = folder == CRIA or hub.is_hub_id(path)
        name = os.fspath(path) if named else folder.resolve().name
        return cls(model, tokenizer, stops, name)

    @classmethod
    def random(
        cls,
        config: str | LlamaConfig,
        seed: int = 0,
        dtype: Any = "float32",
        std: float = 0.02,
        mesh: MeshLike = None,
    ) -> Llama:
        """A Llama of a preset's or a config's shape with normal weights of deviation `std`.

        `mesh` as in `from_pretrained`; the weights are the same on any.

        >>> Llama.random(dataclasses.replace(LlamaConfig.preset("llama-3.2-1b"), vocab_size=16,
        ...     hidden_size=8, intermediate_size=16, num_hidden_layers=1)).config.vocab_size
        16
        """
        name = config if isinstance(config, str) else None
        config = _config(config)
        model = Model(config, as_dtype(dtype), _mesh(mesh, config, as_dtype(dtype)))
        size = config.parameter_count * model.dtype.itemsize
        check_fits(size, name or "A model of this config", parts("F W", model.mesh))
        initialize(model, seed, std)
        return cls(model, name=name)

    @classmethod
    def abstract(
        cls, config: str | LlamaConfig, dtype: Any = "bfloat16", mesh: MeshLike = None
    ) -> Llama:
        """The tree of a preset or a config with shapes and dtypes only: it takes no memory.

        On a `mesh` each says too which devices would hold its parts.

        >>> Llama.abstract("llama-3.1-405b").model.norm.weight.get_value()
        ShapeDtypeStruct(shape=(16384,), dtype=bfloat16)
        """
        name = config if isinstance(config, str) else None
        config = _config(config)
        return cls(Model(config, as_dtype(dtype), make_mesh(mesh, config)), name=name)

    def save(
        self,
        path: str | os.PathLike[str],
        format: Literal["huggingface", "meta", "orbax"] = "huggingface",
    ) -> None:
        """Writes a checkpoint, replacing one that is there.

        In Hugging Face's format, which transformers loads; in Meta's, one `consolidated.00.pth`
        that `llama-models` loads (needs torch); or as Orbax writes arrays. An error, an interrupt
        or a kill leaves the old one or the new one whole (`llama_jax.base.replacing`); the folder
        itself, and what else lies in it, stay. Raises `CheckpointError`, `TypeError`, `ValueError`
        for a place where there can be no checkpoint, and `OSError` for a full disk.
        """
        if format == "meta":
            meta.save(path, self.model, self.tokenizer)
        elif format == "orbax":
            orbax.save(path, self.model, self.tokenizer, self.stop_tokens)
        elif format == "huggingface":
            huggingface.save(path, self.model, self.tokenizer, self.stop_tokens)
        else:
            raise ValueError(f"format is {format!r}; it must be 'huggingface', 'meta' or 'orbax'.")

    def tokens(self, text: str | Sequence[str], allow_special: bool = False) -> np.ndarray:
        """`[1, T]` int32 tokens with BOS; `[B, T]` for several texts of equal length in tokens.

        What is put around a text is what the tokenizer's file says (`Tokenizer.encode`).

        Names of special tokens in the text stay plain text unless `allow_special`.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._tokenizer().encode(t, allow_special=allow_special) for t in texts]
        if len({len(row) for row in rows}) > 1:
            raise PromptError(
                f"The texts have {[len(row) for row in rows]} tokens and make no [B, T] array. "
                "Give the texts themselves to run, generate or stream, which take uneven ones."
            )
        return np.array(rows, np.int32)

    def pieces(self, tokens: Any) -> Any:
        """A printable string per token, in lists shaped as `tokens` is; `[1, T]` gives one list.

        A token that is part of a character is written in bytes, `\\\\xE2`, and an id of the model's
        vocabulary that is no token of the tokenizer's as `<unused 128300>`.
        """
        array = np.asarray(tokens)
        if array.ndim == 2 and len(array) == 1:
            array = array[0]
        if array.ndim == 2:
            return [self._tokenizer().pieces(row.tolist()) for row in array]
        return self._tokenizer().pieces(np.atleast_1d(array).tolist())

    def token(self, text: str | int) -> int:
        """The id of a text that is exactly one token, as `" Mary"`; an id is given back.

        Raises `PromptError` for other texts, and for an id that is not in the vocabulary.
        """
        if not isinstance(text, str):
            id = integer(text)
            if id is None:
                raise PromptError(f"Token {text!r}: a token is an integer, or text that is one.")
            if not 0 <= id < self.config.vocab_size:
                raise PromptError(
                    f"Token {id}: the vocabulary is 0 to {self.config.vocab_size - 1}."
                )
            return id
        try:
            return self._tokenizer().id(text)
        except TokenError as error:
            raise PromptError(
                f"{error} One is needed; a word within a text begins with its space."
            ) from None

    def run(
        self,
        prompt: Prompt,
        capture: Captures = (),
        edits: Edit | Iterable[Edit] = (),
        logits: Logits = "all",
        budget: int | str | None = None,
    ) -> Run:
        """One forward pass that returns the logits and every point that is asked for.

        `prompt` is text, several texts, tokens `[T]` or `[B, T]`, rows of uneven lengths, which
        are aligned on the left. `capture` names points (`llama_jax.points.resolve` says how), or
        holds `Capture`s, which keep a part of one; of two for one point the later counts. `edits`
        (`Ablate`, `Patch`, `Steer`, `Replace`) are made in their order, and what is captured is
        what they leave. `logits` is `"all"` for `[B, T, V]` or `"last"` for `[B, 1, V]` at each
        row's end.

        What the run would hold is priced first, and refused above `budget` (bytes, or text such as
        `"2GiB"`; half of what is free by default). A second call with the same shapes, points and
        kinds of edits does not compile. Raises `PromptError`, `PointError`, `CaptureError`,
        `EditError`, `BudgetError`, before anything runs.
        """
        tokens, lengths, _ = self.read(prompt)
        return running.run(self, tokens, lengths, capture, logits, edits, budget)

    def plan(self, prompt: Prompt, capture: Captures = (), logits: Logits = "all") -> Plan:
        """What `run` would hold: point, shape, dtype and bytes of each array, before anything runs.

        Works on `Llama.abstract` too, with token arrays.

        >>> plan = Llama.abstract("llama-3.1-405b").plan([[0] * 8192], "resid_post", logits="last")
        >>> plan.total == 126 * 8192 * 16384 * 2 + 128256 * 4
        True
        """
        running.check_logits(logits)
        _, lengths, _ = self.read(prompt)
        captures = wanted(capture, self.config.num_hidden_layers)
        return plan(captures, self.config, lengths, self.model.dtype, logits)

    def gradients(
        self,
        prompt: Prompt,
        metric: Metric,
        points: Points,
        edits: Edit | Iterable[Edit] = (),
        logits: Logits = "last",
        budget: int | str | None = None,
    ) -> Gradients:
        """Gradients of a metric with respect to any points, and to any weights.

        `metric` takes the logits `[B, V]` at each row's last position (`[B, T, V]` with
        `logits="all"`) and gives `[B]`, or one number; it is traced, once for each function object.
        `points` takes every form of name, weights' among them (`"o_proj.weight"`). A gradient is
        that of adding to the tensor, after `edits`, and has its shape.

        >>> llama = Llama.from_pretrained("cria")
        >>> mary = llama.token(" Mary")
        >>> found = llama.gradients("Once upon a time", lambda x: x[:, mary], "resid_post")
        >>> found["resid_post", 0].shape
        (1, 5, 192)
        """
        running.check_logits(logits)
        tokens, lengths, _ = self.read(prompt)
        return differentiating.gradients(
            self, tokens, lengths, metric, points, edits, logits, budget
        )

    def edited(self, weights: Mapping[str, Any]) -> Llama:
        """A new handle in which these weights are others; all the rest is shared, not copied.

        Names are those of `llama_jax.model.parameters`, or a copied path. Arrays are cast to the
        dtype of the weight. Raises `EditError` for an unknown name or another shape.

        >>> llama = Llama.from_pretrained("cria")
        >>> silent = llama.edited({"layers.3.self_attn.o_proj.weight": np.zeros((192, 256))})
        >>> llama.model.norm.weight.get_value() is silent.model.norm.weight.get_value()
        True
        """
        leaves, structure = jax.tree.flatten(self.model)
        numbers = leaf_numbers(self.model)
        for name, array in weights.items():
            found = resolve_weights(name, numbers)
            if len(found) != 1:
                near = difflib.get_close_matches(name, numbers, n=3)
                raise EditError(
                    f"{name!r} names {len(found)} weights; give one full name"
                    + (f", such as {', '.join(found[:3] or near)}." if found or near else ".")
                )
            old = leaves[numbers[found[0]]]
            if np.shape(array) != old.shape:
                raise EditError(
                    f"{found[0]}: the array given has shape {list(np.shape(array))}; the weight "
                    f"has {list(old.shape)}."
                )
            leaves[numbers[found[0]]] = jax.device_put(
                jnp.asarray(array, old.dtype), None if self.mesh is None else old.sharding
            )
        return dataclasses.replace(self, model=jax.tree.unflatten(structure, leaves))

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        temperature: float = 0.6,
        top_p: float = 0.9,
        top_k: int | None = None,
        seed: int = 0,
        stop: str | int | Sequence[str | int] = (),
        capture: Captures = (),
        edits: Edit | Iterable[Edit] = (),
    ) -> Iterator[Step]:
        """Writes on from the prompt and yields a `Step` a token; takes what `generate` takes.

        The texts of the steps, joined, are `generate`'s text. `step[name]` is what was captured
        at the positions that the step ran: the prompt's, then one at a time.

        >>> llama = Llama.from_pretrained("cria")
        >>> told = "".join(step.text for step in llama.stream("One day", 8))
        >>> told == llama.generate("One day", 8).text
        True
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        rows = self.read(prompt)
        captures = of_prompt(wanted(capture, self.config.num_hidden_layers), rows.lengths)
        return writing.write(self, *rows, max_new_tokens, sampling, stop, captures, edits)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        temperature: float = 0.6,
        top_p: float = 0.9,
        top_k: int | None = None,
        seed: int = 0,
        stop: str | int | Sequence[str | int] = (),
        capture: Captures = (),
        edits: Edit | Iterable[Edit] = (),
        budget: int | str | None = None,
    ) -> Generation:
        """Writes on from one prompt or a batch of uneven ones.

        A row ends at `max_new_tokens`, at one of the checkpoint's end tokens, or at one of `stop`:
        token ids, names of special tokens, or texts (the text ends before it, the tokens after).
        `temperature=0` is greedy; otherwise a token is drawn after `top_k`, then `top_p`
        (`llama_jax.sampling.Sampling`), and equal seeds draw equal tokens.

        `capture` is as in `run`: `out[name]` holds all positions that ran, the prompt and all new
        tokens but the last. `edits` work on the prompt and on every new token; their positions may
        lie beyond the prompt, and negative ones count from the prompt's end.

        Raises what `run` raises, and `ValueError` for settings out of range, before anything runs.
        """
        sampling = Sampling(temperature, top_p, top_k, seed)
        tokens, lengths, single = self.read(prompt)
        captures = of_prompt(wanted(capture, self.config.num_hidden_layers), lengths)
        steps = writing.write(
            self,
            tokens,
            lengths,
            single,
            max_new_tokens,
            sampling,
            stop,
            captures,
            edits,
            budget,
            keep=True,
        )
        return writing.collect(steps, self, lengths, single, captures)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        *,
        tool_format: ToolFormat = "json",
        knowledge_cutoff: str | None = None,
        today: str | None = None,
        template: bool | str = True,
        continue_final_message: bool | str = False,
        **settings: Any,
    ) -> Reply:
        """The assistant's reply to messages, in the checkpoint's own chat format or Llama 3.1's.

        `llama_jax.text.encode_chat` says what messages and tools may be; `settings` are those of
        `generate`. What the reply calls is in `reply.tool_calls`, and nothing is executed: append
        `reply.message` and a message of the role "tool" with the result, and chat again. Raises
        what `encode_chat` and `generate` raise, before anything runs.

        With `continue_final_message` the last message, the assistant's, is the beginning of the
        reply, and the model goes on from it: `reply.content` is the whole, which takes its place,
        `reply.generation.text` what is new.

        >>> llama = Llama.from_pretrained("cria")
        >>> messages = [{"role": "user", "content": "Hello! I am Rosa."}]
        >>> reply = llama.chat(messages, temperature=0)
        >>> reply.content, reply.ended
        ('Hello, Rosa! How are you?', 'eot')
        """
        prompt = chat_prompt(
            self._tokenizer(),
            messages,
            tools,
            tool_format=tool_format,
            knowledge_cutoff=knowledge_cutoff,
            today=today,
            template=template,
            add_generation_prompt=None,
            continue_final_message=continue_final_message,
        )
        if continue_final_message and messages[-1]["role"] != "assistant":
            raise ChatError(
                f"continue_final_message: the last message is of the {messages[-1]['role']}; a "
                "reply goes on from an assistant's. chat_tokens takes any."
            )
        tokenizer, stop = self._tokenizer(), settings.pop("stop", ())
        ends = [tokenizer.special[name] for name in ENDS if name in tokenizer.special]
        stops = [*writing.stop_items(stop), *ends]
        written = self.generate(prompt.tokens, stop=stops, **settings)
        said = written.tokens[0, : written.lengths[0]]
        reply = read_reply(
            tokenizer, said, tools, str(written.text), prompt.begun, self.stop_tokens
        )
        return dataclasses.replace(reply, generation=written)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        *,
        tool_format: ToolFormat = "json",
        knowledge_cutoff: str | None = None,
        today: str | None = None,
        template: bool | str = True,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
    ) -> np.ndarray:
        """`[1, T]` int32 tokens of a chat, as `chat` gives them to the model; also for `run`.

        Their text is `llama.tokenizer.decode(tokens[0])`. With `add_generation_prompt=False` they
        end with the last message, with `continue_final_message` within it. Raises what
        `llama_jax.text.encode_chat` raises.

        >>> llama = Llama.from_pretrained("cria")
        >>> tokens = llama.chat_tokens([{"role": "user", "content": "Hello!"}])
        >>> llama.tokenizer.decode(tokens[0, 1:6])
        '<|start_header_id|>user<|end_header_id|>\\n\\nHello'
        """
        ids = encode_chat(
            self._tokenizer(),
            messages,
            tools,
            tool_format=tool_format,
            knowledge_cutoff=knowledge_cutoff,
            today=today,
            template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return np.array([ids], np.int32)

    def read(self, prompt: Prompt) -> Rows:
        """A prompt as the model takes it: tokens padded on the right, and the rows' lengths.

        Raises `PromptError` for what is no prompt, for an empty one, and for unknown tokens.

        >>> Llama.from_pretrained("cria").read(["Once upon a time", "One day"]).lengths.tolist()
        [5, 3]
        """
        return read(prompt, lambda text: self._tokenizer().encode(text), self.config.vocab_size)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise PromptError(
                "This model came without a tokenizer (no tokenizer.json or tokenizer.model beside "
                "its weights), so it takes no text: give token arrays [T] or [B, T]."
            )
        return self.tokenizer

    def __repr__(self) -> str:
        c, mesh = self.config, self.mesh
        sizes = {} if mesh is None else {a: n for a, n in mesh.shape.items() if n > 1}
        on = "".join(f", {axis} {size}" for axis, size in sizes.items())
        return (
            f"Llama({c.parameter_count:,} parameters in {self.model.dtype}: "
            f"{c.num_hidden_layers} layers, D {c.hidden_size}, {c.num_attention_heads} heads / "
            f"{c.num_key_value_heads} KV heads, vocabulary {c.vocab_size:,}{on})"
        )


def _check_stops(folder: pathlib.Path, stops: tuple[int, ...], config: LlamaConfig) -> None:
    beyond = [token for token in stops if token >= config.vocab_size]
    if beyond:
        warnings.warn(
            f"{folder}: eos_token_id has {', '.join(map(str, beyond))}, and the vocabulary is 0 to "
            f"{config.vocab_size - 1}: no text ends there.",
            stacklevel=3,
        )


def _config(given: Any) -> LlamaConfig:
    """The config that is meant: a preset's by its name, or itself."""
    if isinstance(given, str):
        return LlamaConfig.preset(given)
    if not isinstance(given, LlamaConfig):
        raise TypeError(
            f"config is a {type(given).__name__}; it must be a preset's name or a LlamaConfig. "
            "LlamaConfig.from_huggingface and from_meta read settings."
        )
    return given


def _mesh(given: MeshLike, config: LlamaConfig, dtype: Any) -> Mesh | None:
    """The mesh that is asked for; where none is, all devices if the weights do not fit on one."""
    memory, count = device_memory(), jax.local_device_count()
    needed = config.parameter_count * jnp.dtype(dtype).itemsize
    if given is None and count > 1 and memory is not None and needed > memory:
        given = {"tensor": count}
    return make_mesh(given, config)
