import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Llama
from llama_jax.cria.vocabulary import train_tokenizer
from llama_jax.generate import advance, prefill
from llama_jax.model import empty_cache
from llama_jax.sampling import Sampling, choose
from llama_jax.text import Tokenizer
from tests.tiny import GQA, compiled

RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(0, 96, n).tolist() for n in (9, 30, 17)]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module")
def speaker():
    """A random Llama with a tokenizer, which says nonsense in every byte there is."""
    import dataclasses

    backend = train_tokenizer(["the mill by the lake, the lamp in the mill"], vocab_size=528)
    tokenizer = Tokenizer(backend, bos=backend.token_to_id("<|begin_of_text|>"))
    made = Llama.random(dataclasses.replace(GQA, vocab_size=528), std=0.3)
    made.tokenizer = tokenizer
    return made


@pytest.mark.exact
def test_greedy_writing_is_the_argmax_of_full_forwards(llama):
    written = llama.generate(PROMPTS, max_new_tokens=12, temperature=0)
    assert written.tokens.shape == (3, 12) and written.lengths.tolist() == [12, 12, 12]
    for row, prompt in enumerate(PROMPTS):
        whole = prompt + written.tokens[row].tolist()
        logprobs = jax.nn.log_softmax(llama.run(whole).logits[0, len(prompt) - 1 : -1])
        assert jnp.argmax(logprobs, axis=-1).tolist() == written.tokens[row].tolist()
        said = jnp.take_along_axis(logprobs, written.tokens[row][:, None], axis=-1)[:, 0]
        np.testing.assert_allclose(written.logprobs[row], said, atol=1e-4)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        np.testing.assert_allclose(written.entropy[row], entropy, atol=1e-4)


def test_each_row_of_a_batch_is_the_row_alone(llama):
    together = llama.generate(PROMPTS, max_new_tokens=12, temperature=0)
    for row, prompt in enumerate(PROMPTS):
        alone = llama.generate(prompt, max_new_tokens=12, temperature=0)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], atol=1e-4)


@pytest.mark.exact
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
def test_prefill_in_any_chunks_is_the_full_forward(llama, chunk):
    leaves, structure = jax.tree.flatten(llama.model)
    lengths = np.array([len(p) for p in PROMPTS], np.int32)
    tokens = np.zeros((3, 30), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    cache = empty_cache(GQA, 3, 64, jnp.float32)
    logits, cache, _ = prefill(structure, tuple(leaves), cache, tokens, lengths, chunk)
    full = llama.run(PROMPTS, logits="last").logits[:, 0]
    bound = 1e-5 * max(1, float(jnp.abs(full).max()))
    np.testing.assert_allclose(logits, full, rtol=0, atol=bound)
    assert cache.lengths.tolist() == lengths.tolist()


def test_a_second_call_of_the_same_shapes_compiles_nothing(llama):
    llama.generate(PROMPTS, max_new_tokens=5)
    with compiled() as programs:
        others = [[(t + 1) % 96 for t in p] for p in PROMPTS]
        llama.generate(others, max_new_tokens=5, temperature=0.9, top_p=0.5, top_k=7, seed=3)
    assert not programs


def test_the_cache_is_donated(llama):
    leaves, structure = jax.tree.flatten(llama.model)
    cache = empty_cache(GQA, 1, 16, jnp.float32)
    one = np.ones(1, np.int32)
    advance(structure, tuple(leaves), cache, np.array([[5]], np.int32), one, {})
    assert all(array.is_deleted() for array in (*cache.keys, *cache.values))
    assert not any(leaf.is_deleted() for leaf in leaves)


def test_streaming_gives_what_generating_gives(speaker):
    options = {"max_new_tokens": 30, "temperature": 1.0, "top_p": 1.0, "seed": 7}
    written = speaker.generate("the lamp", **options)
    steps = list(speaker.stream("the lamp", **options))
    assert [step.token for step in steps] == written.tokens[0].tolist()
    assert "".join(step.text for step in steps) == written.text
    np.testing.assert_array_equal([step.logprob for step in steps], written.logprobs[0])
    for step in steps:
        assert len(step.top) == 10 and step.top[0].probability >= step.top[1].probability


def test_streaming_a_batch_gives_a_list_a_step(speaker):
    steps = list(speaker.stream(["the lamp", "a"], max_new_tokens=4, temperature=0))
    written = speaker.generate(["the lamp", "a"], max_new_tokens=4, temperature=0)
    assert [step.token for step in steps] == written.tokens.T.tolist()
    assert ["".join(t) for t in zip(*(s.text for s in steps), strict=True)] == written.text


def test_no_step_ends_within_a_character(speaker):
    steps = list(speaker.stream("the", max_new_tokens=60, temperature=1.5, top_p=1.0, stop=()))
    ids = [step.token for step in steps]
    assert "".join(s.text for s in steps) == speaker.tokenizer.decode(ids, skip_special=True)


def test_equal_seeds_draw_equal_tokens_and_rows_draw_their_own(llama):
    same = [PROMPTS[0]] * 3
    first, again = (llama.generate(same, 20, temperature=1.0, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) == 3
    other = llama.generate(same, 20, temperature=1.0, seed=6)
    assert (other.tokens != first.tokens).any()


def test_a_stop_token_ends_its_row_alone(llama):
    free = llama.generate(PROMPTS, max_new_tokens=12, temperature=0)
    stop = int(free.tokens[1, 3])
    stopped = llama.generate(PROMPTS, max_new_tokens=12, temperature=0, stop=stop)
    for row in range(3):
        where = np.flatnonzero(free.tokens[row] == stop)
        length = int(where[0]) + 1 if len(where) else 12
        assert stopped.lengths[row] == length
        kept = free.tokens[row, :length].tolist()
        assert stopped.tokens[row, :length].tolist() == kept
        assert (stopped.tokens[row, length:] == 0).all()
        assert (stopped.logprobs[row, length:] == 0).all()


def test_the_checkpoint_s_end_tokens_stop(llama):
    free = llama.generate(PROMPTS[0], max_new_tokens=12, temperature=0)
    ending = Llama(llama.model, stop_tokens=(int(free.tokens[0, 0]),))
    assert ending.generate(PROMPTS[0], max_new_tokens=12, temperature=0).lengths.tolist() == [1]


def test_a_stop_text_is_cut_off_even_where_it_spans_tokens(speaker):
    options = {"max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0, "seed": 1}
    free = speaker.generate("the lamp", **options).text
    stop = free[9:14]
    steps = list(speaker.stream("the lamp", **options, stop=[stop]))
    assert "".join(step.text for step in steps) == free[: free.index(stop)]
    assert len(steps) < 40


def test_a_special_token_s_name_is_a_stop_token(speaker):
    eot = speaker.tokenizer.special["<|eot_id|>"]
    bias = speaker.run("the", logits="last").top(1)[0].token
    assert bias != eot
    written = speaker.generate("the", max_new_tokens=3, temperature=0, stop="<|eot_id|>")
    assert written.lengths[0] == 3


def test_no_new_tokens_is_an_empty_text(speaker):
    written = speaker.generate("the lamp", max_new_tokens=0)
    assert written.tokens.shape == (1, 0) and written.text == ""
    assert speaker.generate(["the", "a"], max_new_tokens=0).text == ["", ""]


def test_without_a_tokenizer_there_are_tokens_and_no_text(llama):
    written = llama.generate(PROMPTS[0], max_new_tokens=3)
    assert written.tokens.shape == (1, 3) and written.text == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"stop": [""]}, "empty text"),
        ({"max_new_tokens": 1020}, "1029 positions.*1024.*At most 1015"),
        ({"stop": "end"}, "without a tokenizer"),
    ],
)
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_settings_out_of_range_are_errors_at_the_call(llama, options, says, how):
    with pytest.raises(ValueError, match=says):
        getattr(llama, how)(PROMPTS[0], **options)


def test_a_prompt_longer_than_the_model_s_positions_is_an_error(llama):
    with pytest.raises(ValueError, match="1100 tokens"):
        llama.generate([1] * 1100, max_new_tokens=1)


def test_an_interrupt_in_the_middle_leaves_the_model_usable(llama):
    expected = llama.generate(PROMPTS[0], max_new_tokens=8, temperature=0)
    with pytest.raises(KeyboardInterrupt):
        for i, _ in enumerate(llama.stream(PROMPTS[0], max_new_tokens=8, temperature=0)):
            if i == 3:
                raise KeyboardInterrupt
    again = llama.generate(PROMPTS[0], max_new_tokens=8, temperature=0)
    np.testing.assert_array_equal(again.tokens, expected.tokens)


# Sampling

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.0625, 0.0625]]))


def drawn(**settings):
    return {int(choose(LOGITS, Sampling(**settings), step).token[0]) for step in range(200)}


@pytest.mark.parametrize("temperature", [1e-40, 1e-30, 1e-21, 1e-19, 1e-10])
def test_a_temperature_of_almost_0_is_greedy(llama, temperature):
    greedy = llama.generate([5, 9, 2], 8, temperature=0)
    assert (llama.generate([5, 9, 2], 8, temperature=temperature).tokens == greedy.tokens).all()


def test_temperature_0_is_greedy():
    assert drawn(temperature=0) == {0}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    # A token stays while what comes before it is at most p: at exactly 0.5 the second stays.
    [(0.49, {0}), (0.5, {0, 1}), (0.74, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_a_token_while_those_before_it_sum_to_at_most_p(top_p, kept):
    assert drawn(temperature=1.0, top_p=top_p) == kept


@pytest.mark.parametrize("top_k", [1, 2, 3, 99])
def test_top_k_keeps_the_k_likeliest(top_k):
    assert drawn(temperature=1.0, top_p=1.0, top_k=top_k) == set(range(min(top_k, 5)))


def test_draws_follow_the_distribution_at_the_temperature():
    logits = jnp.repeat(LOGITS, 20000, axis=0)
    tokens = choose(logits, Sampling(temperature=2.0, top_p=1.0), 0).token
    expected = jax.nn.softmax(LOGITS[0] / 2)
    np.testing.assert_allclose(jnp.bincount(tokens, length=5) / 20000, expected, atol=0.015)


def test_log_probabilities_are_of_the_unmodified_distribution():
    chosen = choose(LOGITS, Sampling(temperature=0.1, top_p=0.3), 0)
    np.testing.assert_allclose(chosen.logprob, [np.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(chosen.entropy, [1.875 * np.log(2)], rtol=1e-6)
