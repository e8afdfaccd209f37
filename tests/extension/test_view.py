"""What all views have in common."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import llama_loupe as loupe
from llama_jax import Llama
from llama_loupe.view import Kept, View

POINTS = ("q_rot", "k_rot", "embed", "self_attn.out", "mlp.out", "resid_post")


@pytest.fixture(scope="module")
def runs():
    llama = Llama.from_pretrained("cria")
    prompts = (["Once upon a time", last] for last in ("One day", "One night"))
    return [llama.run(both, capture=POINTS) for both in prompts]


@pytest.mark.parametrize("name", ["attention", "tokens", "lens", "residual", "page", "compare"])
def test_python_sees_which_row_of_a_batch_is_shown(runs, name):
    given = runs if name == "compare" else runs[:1]
    selection = loupe.Selection()
    view = getattr(loupe, name)(*given, row=-1, selection=selection)
    assert isinstance(view, View) and view.selection is selection and selection.row == 1
    with pytest.raises(IndexError, match=r"Row 2; this (Run|batch) has 2\."):
        getattr(loupe, name)(*given, row=2)


def test_no_more_is_kept_than_was_asked_for():
    kept, made = Kept[int](2), []

    def at(key):
        return kept.get(key, lambda: made.append(key) or key)

    assert [at(key) for key in (1, 2, 1, 3, 2, 1)] == [1, 2, 1, 3, 2, 1]
    assert made == [1, 2, 3, 1]


def test_threads_share_what_is_kept():
    kept = Kept[int](2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: kept.get(i % 5, lambda: i % 5), range(5000)))
    assert found == [i % 5 for i in range(5000)]
