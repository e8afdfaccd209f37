"""What may be given as a prompt."""

import collections

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from llama_jax import Llama
from llama_jax.prompts import PromptError, read
from tests.tiny import GQA


def rows(prompt):
    found = read(prompt, lambda text: [90, *map(ord, text)], 128)
    lengths = found.lengths.tolist()
    return [row[:n].tolist() for row, n in zip(found.tokens, lengths, strict=True)], found.single


@pytest.mark.parametrize(
    ("prompt", "expected", "single"),
    [
        ("ab", [[90, 97, 98]], True),
        (["a", "bc"], [[90, 97], [90, 98, 99]], False),
        (pandas.Series(["a", "bc"]), [[90, 97], [90, 98, 99]], False),
        (np.array(["a", "bc"]), [[90, 97], [90, 98, 99]], False),
        ([1, 2], [[1, 2]], True),
        (range(1, 3), [[1, 2]], True),
        (jnp.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]], False),
        ([[1, 2], (3,), np.array([4, 5, 6])], [[1, 2], [3], [4, 5, 6]], False),
    ],
)
def test_a_prompt_is_text_or_tokens(prompt, expected, single):
    assert rows(prompt) == (expected, single)


@pytest.mark.parametrize("mapping", [dict, collections.UserDict])
@pytest.mark.parametrize("dtype", [np.int64, bool])
def test_a_tokenizer_s_mapping_is_read_without_its_padding(mapping, dtype):
    ids = np.array([[0, 0, 5, 6], [7, 8, 9, 0], [1, 2, 3, 4]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).astype(dtype)
    given = mapping({"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0})
    assert rows(given) == ([[5, 6], [7, 8, 9], [1, 2, 3, 4]], False)
    assert rows(mapping(input_ids=[5, 6, 0], attention_mask=[1, 1, 0])) == ([[5, 6]], True)
    assert rows(mapping(input_ids=[[5], [6, 7]])) == ([[5], [6, 7]], False)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"text": "a"}, "dict of text, without input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"rows of \[2\] tokens, .* of \[1\]"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "follow each other"),
        ({"input_ids": [[1, 2]], "attention_mask": [[2, 1]]}, "follow each other"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "is empty"),
        ({"input_ids": 5}, "is a int"),
        (b"abc", "is a bytes"),
        ({"a", "b"}, "is a set"),
        (iter(["a"]), "iterator"),
        (pandas.DataFrame({"text": ["a"]}), "is a DataFrame"),
        (["a", [1, 2]], "1 texts and a list"),
        ([[1], "a"], "1 texts and a list"),
        ([b"a"], "a prompt is text"),
        ([["a"]], "a prompt is text"),
        ([1.0, 2.0], "float64"),
        ([True, False], "bool"),
        ([[1], [2, [3]]], "Row 1"),
        (np.zeros((1, 2, 3), int), "a prompt is text"),
        (None, "NoneType"),
        (7, "is a int"),
        ([], "empty"),
        ([[1], []], "row 1"),
        ([128], "Token 128 at position 0"),
    ],
)
def test_all_else_is_refused_by_name(prompt, says):
    with pytest.raises(PromptError, match=says):
        rows(prompt)


def test_rows_have_no_padding_and_can_be_run_again():
    llama = Llama.random(GQA)
    run = llama.run([[5, 6, 7], [8]])
    assert run.rows == [[5, 6, 7], [8]]
    again = llama.run(run.rows)
    np.testing.assert_array_equal(again.lengths, run.lengths)
    np.testing.assert_array_equal(again.logits, run.logits)
    plain = llama.generate([[5, 6, 7], [8]], 4, temperature=0)
    out = llama.generate([[5, 6, 7], [8]], 4, temperature=0, stop=int(plain.tokens[0, 1]))
    assert out.rows[0] == plain.tokens[0, :2].tolist()
    assert [len(row) for row in out.rows] == out.lengths.tolist()


@pytest.mark.parametrize("layers", [(0,), (0, 2), None])
def test_a_stack_has_layers_first_whatever_the_depth(layers):
    llama = Llama.random(GQA)
    points = "pattern" if layers is None else [("pattern", layer) for layer in layers]
    run = llama.run([5, 6, 7], points)
    stacked = run.stack("pattern")
    assert stacked.shape == (3 if layers is None else len(layers), 1, 4, 3, 3)
    for n, name in enumerate(run.names):
        np.testing.assert_array_equal(stacked[n], run.captured[name])
    with pytest.raises(KeyError, match="stack one of them"):
        llama.run([5], ("z", "pattern")).stack(("z", "pattern"))


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "stop", "max_new_tokens"])
@pytest.mark.parametrize("bad", [None, True, "x" * 0, [1.5], float("nan"), {}])
def test_settings_of_another_kind_are_refused_by_name(name, bad):
    llama = Llama.random(GQA)
    if name == "stop" and bad == {}:
        bad = {"a": 1}
    with pytest.raises((TypeError, ValueError), match=name):
        llama.generate([5], **{name: bad})


def test_a_stop_is_an_integer_of_any_library():
    llama = Llama.random(GQA)
    plain = llama.generate([5], 6, temperature=0)
    for stop in (np.int64(plain.tokens[0, 2]), jnp.int32(plain.tokens[0, 2])):
        assert llama.generate([5], 6, temperature=0, stop=stop).lengths[0] <= 3
