import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import Ablate, Capture, Llama, Patch, Replace, Steer
from llama_jax import generate as writing
from llama_jax.model.tap import EditError
from llama_jax.points import POINTS, PointError, resolve
from tests.tiny import GQA, compiled

A = np.arange(12)[None]
B = (A * 7 + 3) % 96
NAMES = [point.local if point.in_layer else point.name for point in POINTS]


@pytest.fixture(scope="module")
def llama():
    return Llama.random(GQA, std=0.3)


@pytest.fixture(scope="module")
def clean(llama):
    return llama.run(A, "*")


@pytest.fixture(scope="module")
def other(llama):
    return llama.run(B, "*")


@pytest.mark.exact
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bits are promised on a CPU")
def test_clean_into_clean_and_steering_by_zero_change_no_bit(llama):
    plain, clean = llama.run(A).logits, llama.run(A, "*")
    np.testing.assert_array_equal(clean.logits, plain)
    np.testing.assert_array_equal(llama.run(A, edits=Patch("*", clean)).logits, plain)
    # XLA joins what stands around a rotation to one loop and multiplies and adds there in one
    # rounding or in two: edits on both sides of it may move the last bit, edits on one do not.
    rotated = [name for name in NAMES if name.endswith("_rot")]
    for names in (rotated, [name for name in NAMES if name not in rotated]):
        steered = llama.run(A, edits=Steer(names, 1.0, scale=0.0))
        np.testing.assert_array_equal(steered.logits, plain)
    for name in ("resid_mid", "head_out", "norm.scale", "self_attn.out"):
        np.testing.assert_array_equal(llama.run(A, edits=Patch(name, clean)).logits, plain)


def test_an_edit_of_any_point_is_seen_there(llama, clean):
    run = llama.run(A, "*", edits=Replace("*", lambda x: jnp.full_like(x, 0.5)))
    assert run.names == clean.names
    unread = {"scores": -np.inf, "pattern": 0.0}  # of the future no edit makes a part
    for name in run.names:
        kind = name.rpartition(".")[2]
        expected = np.where(np.tri(12, dtype=bool), 0.5, unread[kind]) if kind in unread else 0.5
        np.testing.assert_array_equal(
            run[name], np.broadcast_to(expected, clean[name].shape), err_msg=name
        )


def test_an_edit_of_any_point_changes_what_follows(llama, clean):
    names = [resolve(name if name in clean.captured else (name, 1), 3)[0] for name in NAMES]
    rng = np.random.default_rng(0)
    added = {name: rng.standard_normal(clean[name].shape, np.float32) for name in names}
    for name in names:
        if name.endswith(("scores", "pattern")):  # what a query may not read cannot be edited
            added[name] = np.tril(added[name])

    for name in names:
        # One program for all: each point has a strength of its own, of 0 but for one.
        edits = [Steer(point, by, scale=float(point == name)) for point, by in added.items()]
        run = llama.run(A, names, edits)
        assert jnp.abs(run.logits - clean.logits).max() > 1e-3, name
        expected = clean[name] + added[name]
        np.testing.assert_allclose(run[name], expected, rtol=1e-6, atol=1e-5, err_msg=name)


def test_a_head_that_is_ablated_is_a_head_whose_output_weights_are_zero(llama):
    heads = [1, 3]
    run = llama.run(A, "z", edits=Ablate(("z", 1), heads=heads))
    weight = np.array(llama.model.layers[1].self_attn.o_proj.weight.get_value())
    weight.reshape(32, 4, 16)[:, heads] = 0
    silent = llama.edited({"layers.1.self_attn.o_proj.weight": weight})
    np.testing.assert_allclose(run.logits, silent.run(A).logits, atol=2e-5)
    by_output = llama.run(A, edits=Ablate(("head_out", 1), heads=heads))
    np.testing.assert_allclose(by_output.logits, run.logits, atol=2e-5)
    assert (run["z", 1][:, :, heads] == 0).all() and (run["z", 1][:, :, 0] != 0).any()


def test_the_mean_is_over_the_batch_and_its_real_positions(llama):
    rows = [A[0].tolist(), B[0, :5].tolist()]
    whole = np.asarray(llama.run(rows, ("v", 1))["v"])
    edited = llama.run(rows, ("v", 1), edits=Ablate(("v", 1), heads=[0], to="mean"))["v"]
    mean = np.concatenate([whole[0, :, 0], whole[1, :5, 0]]).mean(0)
    np.testing.assert_allclose(edited[:, :, 0], np.broadcast_to(mean, (2, 12, 16)), atol=1e-6)
    np.testing.assert_array_equal(edited[:, :, 1], whole[:, :, 1])


def test_ablating_to_an_array_puts_it_there(llama):
    vector = np.arange(16.0, dtype=np.float32)
    z = llama.run(A, "z", edits=Ablate(("z", 0), positions=[2, -1], to=vector))["z", 0]
    np.testing.assert_array_equal(z[0, 2], np.broadcast_to(vector, (4, 16)))
    np.testing.assert_array_equal(z[0, 11, 3], vector)
    assert (np.asarray(z[0, 3]) != vector).all()


def test_a_patch_of_everything_early_or_late_makes_the_other_run(llama, other):
    by_embedding = llama.run(A, edits=Patch("embed", other))
    np.testing.assert_array_equal(by_embedding.logits, other.logits)
    last = llama.run(A, edits=Patch(("resid_post", -1), other, positions=-1))
    np.testing.assert_array_equal(last.logits[:, -1], other.logits[:, -1])
    assert (last.logits[:, :-1] == llama.run(A).logits[:, :-1]).all()


def test_without_what_the_layers_write_the_stream_is_the_embedding(llama):
    silent = [Ablate("self_attn.out"), Ablate("mlp.out")]
    run = llama.run(A, ["embed", "resid_post", "norm.out"], edits=silent)
    for layer in range(3):
        np.testing.assert_array_equal(run["resid_post", layer], run["embed"])
    embedded = llama.run(A, edits=[Patch(("resid_post", -1), run["embed"])])
    np.testing.assert_array_equal(run.logits, embedded.logits)


def test_a_patch_changes_only_what_lies_in_its_causal_cone(llama, clean, other):
    run = llama.run(A, "*", edits=Patch(("resid_mid", 1), other, positions=[5]))
    for name in resolve("resid_post", 3):
        layer = int(name.split(".")[1])
        same = np.asarray(run[name] == clean[name]).all(-1)[0]
        assert same[:5].all()
        assert same[5:].all() if layer < 1 else not same[5]
    assert not (run["resid_post", 2] == clean["resid_post", 2])[0, 6:].all()


def test_donors_may_be_arrays_mappings_and_longer_or_shorter_prompts(llama, clean, other):
    by_run = llama.run(A, edits=Patch(("v", 1), other, heads=[1])).logits
    by_array = llama.run(A, edits=Patch(("v", 1), other["v", 1], heads=[1])).logits
    by_mapping = llama.run(A, edits=Patch(("v", 1), dict(other.captured), heads=[1])).logits
    np.testing.assert_array_equal(by_array, by_run)
    np.testing.assert_array_equal(by_mapping, by_run)
    short = llama.run(B[:, :7], ("resid_post", 1))
    run = llama.run(A, ("resid_post", 1), edits=Patch(("resid_post", 1), short, positions=[2, -1]))
    np.testing.assert_array_equal(run["resid_post"][0, 2], short["resid_post"][0, 2])
    np.testing.assert_array_equal(run["resid_post"][0, 11], short["resid_post"][0, 6])
    np.testing.assert_array_equal(run["resid_post"][0, 6], clean["resid_post", 1][0, 6])


def test_one_donor_serves_a_ragged_batch_each_row_at_its_own_end(llama, other):
    rows = [A[0].tolist(), A[0, :5].tolist()]
    run = llama.run(rows, "embed", edits=Patch("embed", other, positions=-1))
    np.testing.assert_array_equal(run["embed"][0, 11], other["embed"][0, 11])
    np.testing.assert_array_equal(run["embed"][1, 4], other["embed"][0, 11])
    assert (run["embed"][1, 3] != other["embed"][0, 3]).any()


def test_a_donor_of_one_token_is_put_where_it_is_asked_for(llama):
    donor = llama.run([33], ("resid_post", 1))
    for given in (donor, donor["resid_post"]):
        run = llama.run(A, ("resid_post", 1), edits=Patch(("resid_post", 1), given, positions=-1))
        np.testing.assert_array_equal(run["resid_post"][0, -1], donor["resid_post"][0, 0])


def test_padding_is_never_donated(llama):
    rows = [[5, 9, 2], [3, 8, 1, 60, 61, 62, 63]]
    donor = llama.run(rows, ("resid_post", 1))
    plain = llama.generate(rows, 8, temperature=0)
    same = llama.generate(rows, 8, temperature=0, edits=Patch(("resid_post", 1), donor))
    assert (plain.tokens == same.tokens).all()
    with pytest.raises(EditError, match=r"\[3, 7\] tokens, those here \[7, 7\]"):
        llama.run([rows[1], rows[1]], edits=Patch(("resid_post", 1), donor))
    one = llama.run([5], "pattern")
    same = llama.generate([5], 4, temperature=0, edits=Patch("pattern", one), capture="z")
    plain = llama.generate([5], 4, temperature=0, capture="z")
    np.testing.assert_array_equal(same["z", 2], plain["z", 2])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (slice(8, None), range(8, 16)),
        (slice(6, 10), range(6, 10)),
        (slice(0, 10), range(10)),
        (slice(-3, None, 2), range(2, 16, 2)),
        (slice(-3, -1), range(2, 4)),
        ([6, -1], [6, 4]),
    ],
)
def test_positions_of_an_edit_reach_into_what_is_written(llama, positions, expected):
    edit = Ablate(("z", 1), positions=positions)
    out = llama.generate([5, 9, 2, 40, 7], 12, temperature=0, edits=edit, capture=("z", 1))
    silent = np.flatnonzero((np.asarray(out["z"])[0] == 0).all((1, 2)))
    assert silent.tolist() == sorted(expected)


def test_a_slice_that_chooses_nothing_is_an_error(llama):
    with pytest.raises(EditError, match="chooses no position"):
        llama.run([5, 9, 2, 40, 7], edits=Ablate("z", positions=slice(9, 12)))


@pytest.mark.parametrize("edit", [Ablate(("scores", 1)), Ablate(("pattern", 1), to=0.1)])
def test_no_edit_of_a_map_lets_a_query_read_the_future_or_padding(llama, edit):
    rows = [[5, 9, 2], [3, 8, 1, 60, 61, 62, 63]]
    both = llama.run(rows, "pattern", edits=edit)
    alone = llama.run(rows[:1], edits=edit)
    np.testing.assert_allclose(both.logits[0, :3], alone.logits[0], atol=1e-4)
    assert (np.triu(both["pattern", 1], 1) == 0).all()
    out = llama.generate(rows[1], 4, temperature=0, edits=edit, capture="resid_post")
    again = llama.run(rows[1] + out.tokens[0, :-1].tolist(), "resid_post", edits=edit)
    np.testing.assert_allclose(out["resid_post", 2], again["resid_post", 2], atol=1e-4)


@pytest.mark.parametrize(("point", "unread"), [("scores", "-inf"), ("pattern", "0")])
def test_a_map_with_values_where_nothing_may_be_read_is_refused(llama, clean, point, unread):
    full = np.full((12, 12), 0.1, np.float32)
    for edit in (
        Ablate((point, 1), to=full),
        Patch((point, 1), np.broadcast_to(full, (1, 4, 12, 12))),
    ):
        with pytest.raises(EditError, match=f"values above the diagonal.*Put {unread} there"):
            llama.run(A, edits=edit)
    with pytest.raises(EditError, match="Put 0 there"):
        llama.run(A, edits=Steer((point, 1), full))
    allowed = np.where(np.tri(12) > 0, full, float(unread))
    run = llama.run(A, (point, 1), edits=Ablate((point, 1), to=allowed))
    np.testing.assert_array_equal(run[point][0, 2], allowed.astype(np.float32))
    llama.run(A, edits=Patch((point, 1), clean))  # a run's own
    with pytest.warns(UserWarning, match="masked again"):
        llama.run(A, edits=Replace((point, 1), louder))


def louder(x):
    return x * 2


def test_a_prompt_longer_than_the_model_was_made_for_is_warned_of(llama):
    with pytest.warns(UserWarning, match="1,025 tokens, .* 1,024"):
        llama.run([[1] * 1025], logits="last")


def test_steering_adds_at_its_positions(llama, clean):
    vector = np.linspace(-1, 1, 32, dtype=np.float32)
    edit = Steer(("resid_post", 0), vector, scale=3.0, positions=slice(4, None))
    run = llama.run(A, "resid_post", edits=edit)
    np.testing.assert_array_equal(run["resid_post", 0][:, :4], clean["resid_post", 0][:, :4])
    expected = clean["resid_post", 0][:, 4:] + vector * 3
    np.testing.assert_allclose(run["resid_post", 0][:, 4:], expected, rtol=1e-6, atol=1e-6)


def test_edits_of_one_point_are_made_in_their_order(llama, clean):
    add, double = Steer("embed", np.ones(32, np.float32)), Replace("embed", lambda x: x * 2)
    one, two = (llama.run(A, "embed", edits=e)["embed"] for e in ([add, double], [double, add]))
    np.testing.assert_allclose(one, (clean["embed"] + 1) * 2, rtol=1e-6)
    np.testing.assert_allclose(two, clean["embed"] * 2 + 1, rtol=1e-6)


def test_new_values_strengths_positions_heads_and_donors_compile_nothing(llama, clean, other):
    vector = np.ones(32, np.float32)

    def edits(to, donor, scale, positions, heads):
        return [
            Ablate(("z", 1), heads=heads, positions=positions, to=to),
            Patch(("resid_mid", 0), donor, positions=positions),
            Steer("embed", vector * to, scale, positions),
            Ablate(("q", 2), to="mean", heads=heads),
        ]

    llama.run(A, "embed", edits=edits(0.0, clean, 1.0, None, None))
    jnp.where(vector * 1 == 0, -0.0, vector)
    with compiled() as programs:
        llama.run(A, "embed", edits=edits(2.0, other, 0.5, [3, -1], [0, 2]))
        llama.run(B, "embed", edits=edits(1.0, clean, 0.0, slice(2, 5), 1))
    assert not programs
    with compiled() as programs:
        llama.run(A, "embed", edits=[Ablate(("z", 2))])
    assert programs


def test_a_function_compiles_once(llama):
    def halve(x):
        return x / 2

    llama.run(A, edits=Replace("mlp.out", halve))
    with compiled() as programs:
        llama.run(B, edits=Replace("mlp.out", halve))
    assert not programs


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Steer("resid_post", np.ones(31)), r"has shape \[31\].*\[1, 12, 32\] \(B T D\)"),
        (Ablate("z", to=np.ones((3, 16))), r"\[3, 16\].*\[1, 12, 4, 16\]"),
        (Ablate("z", to="median"), "'median'"),
        (Ablate("z", heads=[4]), "head 4"),
        (Ablate("resid_post", heads=[0]), "no heads"),
        (Ablate("resid_post", positions=[12]), "position 12 of row 0, which has 12 tokens"),
        (Patch("resid_post", np.ones((1, 11, 32))), r"\[1, 11, 32\].*\[1, 12, 32\].*positions="),
        (Patch("pattern", np.ones((1, 4, 11, 11))), r"\[1, 4, 11, 11\].*\[1, 4, 12, 12\]"),
        (Patch("resid_post", np.ones((1, 11, 32)), positions=[11]), "in the donor: position 11"),
        (Replace("embed", lambda x: x[:, :3]), r"gives shape \[1, 3, 32\].*\[1, 12, 32\]"),
        (Replace("embed", 3), "3 is no function"),
        (Ablate("embed", to=np.ones((1, 12, 32, 1))), r"\[1, 12, 32, 1\].*\[1, 12, 32\]"),
        (Patch("embed", "clean"), "the donor is a str"),
        (None, "edits is None"),
        ("embed", "is not an edit"),
        ([("embed", 0)], "is not an edit"),
    ],
)
def test_an_edit_that_cannot_fit_says_so(llama, edit, says):
    with pytest.raises(EditError, match=says):
        llama.run(A, edits=edit)


def test_a_donor_that_lacks_the_point_says_how_to_get_it(llama, clean):
    run = llama.run(A, Capture("resid_post", positions=[0]))
    with pytest.raises(PointError, match=r"Run it with capture='layers.0.resid_mid'"):
        llama.run(A, edits=Patch("resid_mid", run))
    with pytest.raises(EditError, match="holds only a part"):
        llama.run(A, edits=Patch("resid_post", run))
    with pytest.raises(PointError, match=r"no 'layers.0.z'|no 'layers.0.self_attn.z'"):
        llama.run(A, edits=Patch("z", {"embed": run.logits}))
    with pytest.raises(PointError, match="Near"):
        llama.run(A, edits=Ablate("patern"))


def test_an_exception_in_a_function_leaves_nothing_behind(llama, clean):
    def broken(x):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        llama.run(A, edits=Replace("resid_post", broken))
    with pytest.raises(RuntimeError, match="no"):
        llama.generate(A, 4, edits=Replace("resid_post", broken))
    np.testing.assert_array_equal(llama.run(A).logits, clean.logits)
    assert llama.generate(A, 4, temperature=0).tokens.shape == (1, 4)


PROMPTS = [A[0].tolist(), B[0, :5].tolist()]


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize(
    "edits",
    [
        [Ablate(("z", 1), heads=[0, 2]), Steer("resid_post", np.full(32, 0.3, np.float32))],
        [Ablate(("pattern", 2), heads=[1]), Replace("mlp.act", jnp.tanh)],
        [Steer(("resid_mid", 1), np.ones(32, np.float32), 2.0, positions=[2, 13])],
        [Ablate("k", positions=slice(3, None), to=0.5)],
    ],
    ids=["heads", "function", "positions", "from"],
)
def test_edits_hold_through_a_whole_generation(llama, monkeypatch, chunk, edits):
    monkeypatch.setattr(writing, "LARGEST_CHUNK", chunk)
    monkeypatch.setattr(writing, "SMALLEST_CHUNK", min(chunk, 16))
    prompt = PROMPTS[0]
    out = llama.generate(prompt, 5, temperature=0, capture="resid_post", edits=edits)
    written = prompt + out.tokens[0].tolist()
    again = llama.run(written[:-1], "resid_post", edits=edits)
    assert out.tokens[0].tolist() == again.logits[0, len(prompt) - 1 :].argmax(-1).tolist()
    for name in again.names:
        np.testing.assert_allclose(out[name], again[name], rtol=1e-4, atol=1e-4)


def test_a_patch_of_the_prompt_holds_through_a_generation(llama, other, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST_CHUNK", 4)
    monkeypatch.setattr(writing, "SMALLEST_CHUNK", 4)
    edits = [Patch(("resid_mid", 1), other, positions=[3, -1]), Patch(("pattern", 2), other)]
    out = llama.generate(A, 3, temperature=0, edits=edits)
    expected = llama.run(A, edits=edits, logits="last").logits[0, 0].argmax()
    assert out.tokens[0, 0] == expected
    steps = list(llama.stream(A[0], 3, temperature=0, edits=edits))
    assert [step.token for step in steps] == out.tokens[0].tolist()


def test_a_second_generation_with_other_edits_of_the_same_kind_compiles_nothing(llama):
    vector = np.ones(32, np.float32)
    llama.generate(PROMPTS, 4, edits=Steer(("resid_mid", 0), vector, 1.0, positions=[1]))
    with compiled() as programs:
        llama.generate(PROMPTS, 4, edits=Steer(("resid_mid", 0), vector * 2, 0.1, positions=[-1]))
    assert not programs


def test_weights_can_be_edited_in_a_new_handle_that_shares_the_rest(llama, clean):
    name = "layers.2.mlp.down_proj.weight"
    silent = llama.edited({name: np.zeros((32, 48))})
    assert (silent.run(A, ("mlp.out", 2))["mlp.out"] == 0).all()
    np.testing.assert_array_equal(llama.run(A).logits, clean.logits)
    mine = dict(zip(range(99), jax.tree.leaves(llama.model), strict=False))
    shared = sum(mine[i] is leaf for i, leaf in enumerate(jax.tree.leaves(silent.model)))
    assert shared == len(jax.tree.leaves(llama.model)) - 1
    path = ".layers[2].mlp.down_proj.weight.value"  # as Treescope copies it
    by_path = llama.edited({path: jnp.zeros((32, 48), jnp.bfloat16)})
    np.testing.assert_array_equal(by_path.run(A).logits, silent.run(A).logits)
    with pytest.raises(EditError, match=r"\[48, 32\].*\[32, 48\]"):
        llama.edited({name: np.zeros((48, 32))})
    with pytest.raises(EditError, match=r"names 0 weights.*down_proj"):
        llama.edited({"layers.2.mlp.down_proj.weigth": np.zeros((32, 48))})
    with pytest.raises(EditError, match="names 3 weights"):
        llama.edited({"down_proj.weight": np.zeros((32, 48))})


def test_weights_that_share_an_array_are_still_two(llama):
    zeros = jnp.zeros((32, 64))
    shared = llama.edited({f"layers.{i}.self_attn.o_proj.weight": zeros for i in range(3)})
    apart = llama.edited(
        {f"layers.{i}.self_attn.o_proj.weight": np.zeros((32, 64)) for i in range(3)}
    )
    one, two = (h.gradients(A, lambda x: x[:, 3], "o_proj.weight") for h in (shared, apart))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert jnp.abs(one["o_proj.weight", 0]).max() > 0
    again = shared.edited({"layers.0.self_attn.o_proj.weight": jnp.ones((32, 64))})
    assert (again.model.layers[2].self_attn.o_proj.weight.get_value() == 0).all()


def test_a_tied_weight_is_edited_in_both_places():
    tied = Llama.random(dataclasses.replace(GQA, tie_word_embeddings=True), std=0.3)
    old = tied.model.embed_tokens.weight.get_value()
    new = tied.edited({"embed_tokens.weight": old * 2})
    run, before = new.run(A, "norm.out"), tied.run(A, "norm.out")
    np.testing.assert_allclose(run.logits, run["norm.out"] @ old.T * 2, rtol=1e-4, atol=1e-4)
    assert jnp.abs(run["norm.out"] - before["norm.out"]).max() > 1e-3
