"""What may be chosen of an axis, everywhere where something is chosen."""

import jax.numpy as jnp
import numpy as np
import pytest

import llama_loupe as loupe
from llama_jax import Ablate, Capture, Llama, Patch, Steer, analysis, metrics
from llama_jax.base.choice import chosen, numbered, read
from llama_jax.capture import CaptureError
from llama_jax.points import PointError
from llama_loupe.selection import SelectionError
from tests.tiny import GQA

PROMPT = list(range(6))
MASK = np.arange(4) == 2
BAD = [2.0, "2", None, [], [True, 2], [0.0], {2: 1}, {2}, b"\2", [[2]], np.zeros((2, 2), int)]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, (2,)),
        (-1, (3,)),
        (np.int64(2), (2,)),
        (np.array(2), (2,)),
        (jnp.int32(2), (2,)),
        (jnp.array([1, -1]), (1, 3)),
        (range(2), (0, 1)),
        ((3, 0), (3, 0)),
        (slice(1, None), (1, 2, 3)),
        (slice(np.int64(-2), None), (2, 3)),
        (MASK, (2,)),
        (MASK.tolist(), (2,)),
        (jnp.asarray(MASK), (2,)),
    ],
)
def test_a_choice_is_integers_of_any_library_a_slice_or_a_mask(given, expected):
    assert chosen(given, "head", 4) == expected


@pytest.mark.parametrize("given", BAD, ids=repr)
def test_all_else_is_not_a_choice(given):
    with pytest.raises(TypeError, match="heads is "):
        read(given, "heads")


@pytest.mark.parametrize("given", [4, -5, [0, 9], slice(4, 9), MASK[:3], np.zeros(4, bool)])
def test_what_is_not_there_cannot_be_chosen(given):
    with pytest.raises(IndexError, match="4 heads"):
        chosen(given, "head", 4)


@pytest.mark.parametrize("bad", [True, np.bool_(True), 1.0, "1", None, [1]])
def test_one_is_an_integer(bad):
    with pytest.raises(TypeError, match=r"layer is .* 0 to 3"):
        numbered("layer", bad, 4)


@pytest.mark.parametrize(
    "edit",
    [
        lambda **chosen: Ablate(("z", 1), **chosen),
        lambda **chosen: Patch(("z", 1), np.zeros((1, 6, 4, 16), np.float32), **chosen),
    ],
    ids=["Ablate", "Patch"],
)
def test_masks_slices_and_numbers_edit_the_same(llama, edit):
    def silent(**chosen):
        z = np.asarray(llama.run(PROMPT, ("z", 1), edit(**chosen))["z"])
        return (z == 0).all(-1)[0]

    expected = np.zeros((6, 4), bool)
    expected[:, 2] = True
    for heads in (MASK, slice(2, 3), -2, [2]):
        np.testing.assert_array_equal(silent(heads=heads), expected)
    expected = np.zeros((6, 4), bool)
    expected[[1, 4]] = True
    for positions in (np.isin(np.arange(6), (1, 4)), [1, -2], slice(1, 5, 3)):
        np.testing.assert_array_equal(silent(positions=positions), expected)


def test_masks_steer_and_capture_the_same_positions(llama):
    mask = np.isin(np.arange(6), (1, 4))
    plain = llama.run(PROMPT, ("resid_pre", 1))["resid_pre"]
    pushed = llama.run(PROMPT, ("resid_pre", 1), Steer(("resid_pre", 1), 9.0, positions=mask))
    changed = np.asarray(pushed["resid_pre"] != plain).all(-1)[0]
    np.testing.assert_array_equal(changed, mask)
    kept = llama.run(PROMPT, Capture(("resid_pre", 1), positions=mask))["resid_pre"]
    np.testing.assert_array_equal(kept, plain[:, mask])
    heads = llama.run(PROMPT, Capture(("z", 0), heads=MASK))["z"]
    np.testing.assert_array_equal(heads, llama.run(PROMPT, ("z", 0))["z"][:, :, 2:3])


def test_a_mask_of_the_prompt_holds_while_a_text_is_written(llama):
    mask = np.isin(np.arange(6), (1, 4))
    out = llama.generate(PROMPT, 3, temperature=0, capture=Capture("embed", positions=mask))
    whole = llama.generate(PROMPT, 3, temperature=0, capture="embed")
    np.testing.assert_array_equal(out["embed"], whole["embed"][:, [1, 4]])


def test_a_mask_of_another_length_is_named(llama):
    with pytest.raises(CaptureError, match="mask has 3 entries, and there are 4 query heads"):
        llama.run(PROMPT, Capture("z", heads=MASK[:3]))
    with pytest.raises(CaptureError, match="mask has 4 entries, and there are 6 positions"):
        llama.run(PROMPT, Capture("z", positions=MASK))
    with pytest.raises(CaptureError, match="3 entries, and there are 2 key/value heads"):
        llama.run(PROMPT, Capture("k", heads=MASK[:3]))


@pytest.mark.parametrize("given", BAD, ids=repr)
@pytest.mark.parametrize("name", ["heads", "positions"])
def test_captures_refuse_all_else(given, name):
    if given is None:
        return
    with pytest.raises(CaptureError, match=f"{name} is "):
        Capture("z", **{name: given})


@pytest.mark.parametrize("pair", [("pattern", "3"), ("pattern", "0"), ["3"], "3", "-1", "1.2"])
def test_a_number_in_quotes_is_not_a_layer(llama, pair):
    with pytest.raises(PointError, match=r"A layer is an integer beside a name"):
        llama.run(PROMPT, pair)


@pytest.mark.parametrize("pair", [("pattern", 1.0), ("pattern", True), ("pattern", None)])
def test_a_layer_is_an_integer(llama, pair):
    with pytest.raises(PointError, match="is not a point"):
        llama.run(PROMPT, pair)


def test_tokens_are_integers_of_any_library(llama):
    assert llama.token(np.int32(5)) == llama.token(jnp.int32(5)) == 5
    for bad in (True, 5.0, None, [5]):
        with pytest.raises(ValueError, match="a token is an integer"):
            llama.token(bad)
    run = llama.run(PROMPT)
    with pytest.raises(ValueError, match="the vocabulary is 0 to 95"):
        run.probability(True)
    assert metrics.logit(np.int64(3)) == metrics.logit(3)
    for bad in (True, 3.0, [True, 1], None, {}):
        with pytest.raises(TypeError):
            metrics.logit(bad)


def test_rows_and_positions_of_a_run_are_integers(llama):
    run = llama.run(PROMPT, ("q_rot", "k_rot"))
    for bad in ({"row": True}, {"row": 0.0}, {"position": "1"}):
        with pytest.raises(TypeError):
            run.top(1, **bad)
        if "row" in bad:
            with pytest.raises(TypeError):
                loupe.attention(run, **bad)
    with pytest.raises(TypeError):
        analysis.attention_map(run, layer=True, head=0)


@pytest.mark.parametrize("name", ["layer", "head", "token"])
def test_a_view_refuses_a_selection_that_is_not_there(llama, name):
    run = llama.run(PROMPT, ("q_rot", "k_rot"))
    last = {"layer": 2, "head": 3, "token": 5}[name]
    with pytest.raises(SelectionError, match=f"{name} is 77; it must be an integer, 0 to {last}"):
        loupe.attention(run, selection=loupe.Selection(**{name: 77}))
    selection = loupe.Selection()
    loupe.attention(run, selection=selection)
    setattr(selection, name, -1)
    assert getattr(selection, name) == last
    with pytest.raises(SelectionError, match=f"0 to {last}"):
        setattr(selection, name, last + 1)
    selection.choose({name: last + 1})  # a page's message is not trusted
    assert getattr(selection, name) == last
