import pytest

from llama_jax.points import POINTS, PointError, resolve

PATTERNS = tuple(f"layers.{i}.self_attn.pattern" for i in range(4))


@pytest.mark.parametrize(
    "form",
    [
        "pattern",
        "self_attn.pattern",
        "layers.*.self_attn.pattern",
        "*.pattern",
        "hook_pattern",
        "blocks.*.attn.hook_pattern",
        ["pattern"],
        ("pattern", ("pattern", 0)),
        [("pattern", i) for i in range(4)],
        {"pattern"},
    ],
)
def test_every_form_of_a_name_means_the_same_points(form):
    assert resolve(form, 4) == PATTERNS


@pytest.mark.parametrize(
    "form",
    [
        ("pattern", 3),
        ("pattern", -1),
        ("hook_pattern", 3),
        "layers.3.self_attn.pattern",
        "blocks.3.attn.hook_pattern",
        "3.self_attn.pattern",
    ],
)
def test_one_layer_can_be_named(form):
    assert resolve(form, 4) == PATTERNS[3:]


def test_a_suffix_matches_whole_parts_only():
    assert resolve("norm.out", 2) == ("norm.out",)
    assert resolve("self_attn.out", 2) == ("layers.0.self_attn.out", "layers.1.self_attn.out")
    assert len(resolve("out", 2)) == 2 * 4 + 1


def test_two_names_in_a_tuple_are_two_items():
    assert resolve(("embed", "logits"), 2) == ("embed", "logits")


def test_names_come_in_the_order_of_the_forward_pass():
    assert resolve(["logits", ("z", 1), ("z", 0), "embed"], 2) == (
        "embed",
        "layers.0.self_attn.z",
        "layers.1.self_attn.z",
        "logits",
    )


def test_the_normalized_points_have_the_aliases_of_transformer_lens():
    assert resolve("blocks.1.ln2.hook_normalized", 2) == (
        "layers.1.post_attention_layernorm.normalized",
    )
    assert resolve("ln_final.hook_scale", 2) == ("norm.scale",)


def test_nothing_asked_for_is_nothing():
    assert resolve((), 4) == ()


def test_the_table_holds_no_name_twice():
    names = [point.name for point in POINTS] + [p.alias for p in POINTS if p.alias]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("patern", "pattern"),
        ("layers.9.resid_post", "layers 0 to 3"),
        (("pattern", 4), "0 to 3"),
        (("embed", 0), "not in layer"),
        ([3], "3 is not a point"),
    ],
)
def test_an_unknown_name_says_what_is_near(form, says):
    with pytest.raises(PointError, match=says):
        resolve(form, 4)
