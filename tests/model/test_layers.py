import re

import jax
import jax.numpy as jnp
import treescope

from llama_jax import Llama, LlamaConfig
from llama_jax.model import Model
from tests.tiny import GQA, function_calls, model


def test_equal_layers_are_drawn_once():
    with treescope.using_expansion_strategy(max_height=None):
        text = treescope.render_to_text(model())
    assert text.count("q_proj=") == 1
    assert "# .layers[1] to .layers[2]: the same types and shapes" in text


def test_a_layer_that_differs_is_drawn_on_its_own():
    made = model()
    odd = made.layers[1].mlp.up_proj.weight
    odd.set_value(odd.get_value().astype(jnp.bfloat16))
    assert treescope.render_to_text(made).count("q_proj=") == 3


def test_every_copied_path_evaluates_to_what_it_was_copied_from():
    made = model()
    page = treescope.render_to_html(made, compressed=False)
    paths = set(re.findall(r'data-copy="([^"]+)"', page))
    assert ".layers[0].self_attn.q_proj.weight" in paths
    for path in paths:
        assert eval(f"made{path}") is not None or path == ".mesh", path


def test_the_405b_tree_is_drawn_with_little_work_and_without_memory():
    with function_calls() as calls:
        llama = Llama.abstract("llama-3.1-405b")
        page = treescope.render_to_html(llama)
    assert calls[0] < 3_000_000  # 1.2 million today, about a second
    assert "405,853,388,800" in treescope.render_to_text(llama.model)
    assert len(page) < 50_000


def test_layers_are_a_pytree_and_index_like_a_list():
    made = Model(GQA)
    assert len(made.layers) == 3 and made.layers[-1] is made.layers[2]
    assert len(jax.tree.leaves(made)) == 3 * 9 + 3
    assert made.config == LlamaConfig(**vars(GQA))
