"""A selection, from Python and from a page."""

import pytest
import traitlets

from llama_loupe import Selection


def test_it_is_observed_like_any_traitlets_object():
    selection, seen = Selection(token=3), []
    selection.observe(lambda change: seen.append((change.name, change.new)), ["layer", "token"])
    selection.layer = 2
    selection.token = None
    assert seen == [("layer", 2), ("token", None)]


@pytest.mark.parametrize("bad", [-1, "1", 1.5])
def test_only_indices_can_be_chosen(bad):
    with pytest.raises(traitlets.TraitError):
        Selection().layer = bad


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="not neuron"):
        Selection(neuron=3)


def test_a_page_chooses_what_is_valid_and_nothing_else():
    selection = Selection(layer=1, head=2)
    selection.choose({"layer": 3, "head": "x", "token": -4, "row": None, "kind": "select"})
    assert selection.chosen == {"row": 0, "token": None, "layer": 3, "head": 2}
    selection.choose({"head": None, "token": True})
    assert selection.chosen == {"row": 0, "token": None, "layer": 3, "head": None}


def test_observers_can_tell_that_the_page_chose():
    selection, seen = Selection(), []
    selection.observe(lambda change: seen.append(selection.from_page), "layer")
    selection.choose({"layer": 3})
    selection.layer = 4
    assert seen == [True, False]
