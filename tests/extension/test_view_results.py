"""Pictures of results and of the residual stream: their numbers against the analysis."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import Ablate, Capture, Llama, Steer, analysis
from llama_jax.analysis import (
    SVD,
    Comparison,
    Difference,
    Factored,
    IntegratedGradients,
    PatchSweep,
    Result,
    WeightStatistics,
)
from llama_jax.analysis.weights import Statistics
from llama_loupe import Selection, export, image
from llama_loupe.view import ViewError
from llama_loupe.views.residual import residual
from llama_loupe.views.results import result

WRITES = ("embed", "self_attn.out", "mlp.out")
TEXT = "When Mary and John went to the market, John gave a basket to"
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama):
    return llama.run([TEXT, "Once upon a time"], capture=(*WRITES, "z", "mlp.act", "resid_post"))


def swept(axes=("layer", "head"), point="self_attn.z", shape=(4, 8), **coordinates):
    values = jnp.asarray(normal(*shape))
    metric = "logit_difference(' Mary', ' Rosa')"
    return PatchSweep(values, axes, point, 4.1, -3.7, metric, coordinates=coordinates)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def chart(view, name):
    return next(chart for chart in view.data()["charts"] if chart["name"] == name)


def tile(view, number=0, at=None, window=None, cells=(256, 256), pool="max"):
    whole = view.charts[number].values.shape
    at = [0] * len(whole) if at is None else at
    rows, columns = window or ((0, whole[-2]), (0, whole[-1]))
    sides = {"top": rows[0], "bottom": rows[1], "left": columns[0], "right": columns[1]}
    most = {"rows": cells[0], "columns": cells[1], "pool": pool}
    return view.answer("tile", {"chart": number, "at": at, **sides, **most})


def sent(view):
    return sum(map(len, view.packed()[1]))


def test_a_small_result_is_sent_whole_and_exactly():
    sweep = swept()
    view = result(sweep)
    for name in ("effect", "restored", "values"):
        drawn = chart(view, name)
        np.testing.assert_array_equal(drawn["values"], np.asarray(getattr(sweep, name)))
    assert chart(view, "effect")["diverging"]
    facts = dict(view.data()["facts"])
    assert np.float32(facts["clean"]) == np.float32(sweep.clean)
    assert np.float32(facts["corrupted"].replace("−", "-")) == np.float32(sweep.corrupted)
    assert view.text() == repr(sweep)


def test_the_strongest_entries_are_those_of_the_largest_magnitude():
    sweep = swept()
    drawn = chart(result(sweep), "effect")
    found = [
        (dict(zip(sweep.axes, at, strict=True)), value)
        for at, value in zip(
            drawn["top"]["at"].tolist(), drawn["top"]["values"].tolist(), strict=True
        )
    ]
    assert found == sweep.top(20)


def test_coordinates_say_what_an_index_stands_for():
    sweep = swept(("layer", "position"), shape=(2, 3), layer=[1, 3], position=range(3))
    axes = result(sweep).data()["axes"]
    assert axes["layer"]["names"].tolist() == [1, 3]
    assert axes["position"]["names"] is None  # they count from 0


@pytest.mark.parametrize("point", ["self_attn.v", "self_attn.k", "self_attn.k_rot"])
def test_a_key_value_head_chooses_no_query_head(point):
    data = result(swept(point=point, shape=(4, 4))).data()
    assert data["charts"][0]["axes"] == ("layer", "key/value head")
    assert data["axes"]["key/value head"]["size"] == 4


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_tiles_of_a_large_result_are_its_entries_pooled(pool):
    values = normal(2, 3, 300, 700)
    view = result(Result(jnp.asarray(values), ("batch", "layer", "position", "neuron")))
    assert view.data()["charts"][0]["values"] is None
    slice_ = values[1, 2]
    exact = tile(view, at=[1, 2, 0, 0], window=((10, 20), (500, 700)), pool=pool)
    np.testing.assert_array_equal(exact["values"], slice_[10:20, 500:700])
    found = tile(view, at=[1, 2, 0, 0], cells=(30, 7), pool=pool)
    assert found["rows"].tolist() == [*range(0, 301, 10)]
    cells = slice_.reshape(30, 10, 7, 100).transpose(0, 2, 1, 3).reshape(30, 7, -1)
    if pool == "mean":
        np.testing.assert_allclose(found["values"], cells.mean(-1), rtol=1e-4, atol=1e-7)
    else:
        largest = np.take_along_axis(cells, np.abs(cells).argmax(-1)[..., None], -1)[..., 0]
        np.testing.assert_array_equal(found["values"], largest)


def test_the_strongest_entries_of_a_large_result_are_those_of_numpy():
    values = normal(3, 130, 500)
    values[1, 2, 3] = np.nan
    values[2, 5, 7] = -np.inf
    top = result(Result(jnp.asarray(values), ("layer", "position", "neuron"))).data()
    top = top["charts"][0]["top"]
    size = np.where(np.isfinite(values), np.abs(values), -1)
    order = np.argsort(-size, axis=None, kind="stable")[:20]
    np.testing.assert_array_equal(top["at"], np.stack(np.unravel_index(order, size.shape), -1))
    np.testing.assert_array_equal(top["values"], values.reshape(-1)[order])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_what_lies_on_many_devices_is_drawn_the_same(kind):
    values = normal(4, 64, 512)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=jax.devices()[:8])
    placed = jax.device_put(values, NamedSharding(mesh, P("x", None, "y")))
    axes = ("layer", "position", "neuron")
    one, other = result(Result(jnp.asarray(values), axes)), result(Result(placed, axes))
    top = [view.data()["charts"][0]["top"] for view in (one, other)]
    np.testing.assert_array_equal(top[0]["at"], top[1]["at"])
    np.testing.assert_array_equal(
        tile(other, at=[3, 0, 0], cells=(16, 16))["values"],
        tile(one, at=[3, 0, 0], cells=(16, 16))["values"],
    )


def test_what_is_sent_of_a_model_of_any_size_is_bounded():
    neurons = jnp.zeros((1, 80, 28672)).at[0, 79, 28671].set(1)
    names = [f"{i}.{kind}" for i in range(126) for kind in ("attn", "mlp")]
    shapes = {
        "neurons": Result(neurons, ("batch", "layer", "neuron")),
        "heads": Result(jnp.zeros((126, 128)), ("layer", "head")),
        "tokens": Result(
            jnp.zeros((252, 8192)),
            ("component", "position"),
            coordinates={"component": names},
            pieces=["token"] * 8192,
        ),
    }
    for name, found in shapes.items():
        view = result(found)
        assert sent(view) < 2**20, name
        assert len(json.dumps(view.packed()[0])) < 2**18, name
    view = result(shapes["neurons"])
    assert view.data()["charts"][0]["top"]["at"][0].tolist() == [0, 79, 28671]
    assert tile(view)["values"].nbytes <= 256 * 256 * 4
    assert tile(view)["values"].max() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"chart": 3},
        {"chart": True},
        {"at": [0]},
        {"at": None},
        {"at": [0, 0, 300, 0]},
        {"at": [0, 3, 0, 0]},
        {"top": -1},
        {"bottom": 301},
        {"left": 5, "right": 5},
        {"rows": 257},
        {"columns": 0},
        {"pool": "min"},
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_a_sentence(change):
    view = result(Result(jnp.zeros((2, 3, 300, 700)), ("batch", "layer", "position", "neuron")))
    asked = {"chart": 0, "at": [0] * 4, "top": 0, "left": 0, "bottom": 300, "right": 700}
    with pytest.raises(ViewError):
        view.answer("tile", {**asked, "rows": 9, "columns": 9, "pool": "max", **change})
    with pytest.raises(ViewError):
        view.answer("column", asked)


def test_colours_are_symmetric_where_there_are_both_signs():
    signs = {"one": normal(4, 5) ** 2, "both": normal(4, 5)}
    for name, values in signs.items():
        view = result(Result(jnp.asarray(values), ("layer", "head")))
        assert view.data()["charts"][0]["diverging"] == (name == "both")
        assert view.cells().diverging == (name == "both")


def test_numbers_that_are_not_finite_are_sent_and_no_strongest_entries():
    values = jnp.array([[1.0, jnp.nan], [-jnp.inf, 3.0]])
    drawn = result(Result(values, ("layer", "head"))).data()["charts"][0]
    np.testing.assert_array_equal(drawn["values"], np.asarray(values))
    assert drawn["top"]["values"].tolist() == [3, 1]
    nothing = result(Result(jnp.full((2, 2), jnp.nan), ("layer", "head")))
    assert not len(nothing.data()["charts"][0]["top"]["at"])
    nothing.packed()
    assert nothing.cells() is not None


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [
        ((), None),
        ((1, 1), None),
        ((7,), (1, 7)),
        ((7, 1), (1, 7)),
        ((1, 7, 1, 3, 1), (7, 3)),
        ((2, 3, 4), (3, 4)),
        ((70_000,), (1, 256)),
    ],
)
def test_the_last_two_axes_of_several_entries_are_drawn(shape, drawn):
    values = normal(*shape)
    axes = tuple(f"axis{n}" for n in range(len(shape)))
    view = result(Result(jnp.asarray(values), axes))
    view.packed()
    cells = view.cells()
    if drawn is None:
        assert cells is None
        return
    image.png(cells)
    assert cells.values.shape == drawn
    if values.size == np.prod(drawn):
        np.testing.assert_array_equal(cells.values, values.reshape(drawn))


def test_a_result_without_any_entry_says_so():
    empty = result(Result(jnp.zeros((0, 3)), ("layer", "head")))
    assert empty.payload()["view"] == "empty" and empty.cells() is None


def test_an_exported_file_can_answer_for_every_slice(tmp_path):
    view = result(Result(jnp.asarray(normal(3, 200, 400)), ("layer", "position", "neuron")))
    asked = list(view.questions())
    assert [arguments["at"][0] for _, arguments in asked] == [0, 1, 2]
    assert export(view, tmp_path / "result.html") > 3 * 200 * 256


def test_scores_of_heads_are_charts_to_choose_from(llama):
    scores = analysis.head_scores(llama)
    view = result(scores)
    for score in scores:
        drawn = chart(view, score.replace("_", " "))
        np.testing.assert_array_equal(drawn["values"], np.asarray(getattr(scores, score)))
    assert view.text() == repr(scores)


def test_an_attribution_shows_what_it_explains(run, llama):
    found = analysis.direct_logit_attribution(run, " Mary", by="head", position=None)
    view = result(found)
    np.testing.assert_array_equal(view.data()["charts"][0]["values"], np.asarray(found.values))
    np.testing.assert_array_equal(
        chart(view, "not explained")["values"], np.asarray(found.remainder)
    )
    single = analysis.direct_logit_attribution(llama.run(TEXT, capture=WRITES), " Mary")
    assert np.float32(dict(result(single).data()["facts"])["to explain"]) == single.logit[0]


def test_integrated_gradients_are_shown_by_position_and_whole():
    values = jnp.asarray(normal(1, 5, 8))
    axes = ("batch", "position", "dimension")
    found = IntegratedGradients(values, axes, jnp.ones(1), jnp.zeros(1), "embed")
    view = result(found)
    drawn = chart(view, "sum of each position")["values"]
    np.testing.assert_array_equal(drawn, np.asarray(found.by_position.values))
    np.testing.assert_array_equal(chart(view, "every entry")["values"], np.asarray(values))
    facts = dict(view.data()["facts"])
    assert np.float32(facts["not explained"].replace("−", "-")) == found.error[0]


def test_a_tile_of_attention_says_what_its_cells_are(llama):
    run = llama.run(TEXT, capture=("q_rot", "k_rot"))
    found = analysis.attention_map(run, 1, 3, queries=(5, 14), shape=(4, 4))
    data = result(found).data()
    assert data["axes"]["position"]["names"].tolist() == [5, 8, 10, 12]
    assert data["axes"]["position"]["lasts"].tolist() == [7, 9, 11, 13]
    assert data["charts"][0]["limits"] == (0.0, 1.0)


def test_a_circuit_shows_its_singular_values_and_a_matrix_that_is_small(llama):
    found = analysis.ov_circuit(llama, 1, 3)
    view = result(found)
    line, matrix = view.data()["charts"]
    assert line["line"]
    np.testing.assert_array_equal(line["values"], np.asarray(found.svd().S))
    np.testing.assert_array_equal(matrix["values"], np.asarray(found.matrix()))
    facts = dict(view.data()["facts"])
    assert np.float32(facts["copying score"].replace("−", "-")) == np.float32(found.copying())


def test_the_matrix_of_a_huge_circuit_is_priced_and_not_made(monkeypatch):
    made = Factored(jnp.ones((5000, 2)), jnp.ones((2, 5000)), "OV 0.0")
    monkeypatch.setattr(Factored, "matrix", lambda self: pytest.fail("the matrix was made"))
    view = result(made)
    assert [drawn["name"] for drawn in view.data()["charts"]] == ["singular values"]
    assert dict(view.data()["facts"])["matrix"] == "not made: it would take 95.4 MiB"


def test_circuits_without_eigenvalues_are_drawn():
    for left in (jnp.zeros((4, 2)), jnp.full((4, 2), jnp.nan)):
        view = result(Factored(left, jnp.ones((2, 4))))
        assert dict(view.data()["facts"])["copying score"] == "nan"
    assert "copying score" not in dict(
        result(Factored(jnp.ones((4, 2)), jnp.ones((2, 5)))).data()["facts"]
    )


def test_a_decomposition_into_singular_vectors_is_drawn():
    found = Factored(jnp.asarray(normal(6, 2)), jnp.asarray(normal(2, 5))).svd()
    assert isinstance(found, SVD)
    drawn = result(found).data()["charts"]
    for part, values in zip(drawn, (found.S, found.U, found.Vh), strict=True):
        np.testing.assert_array_equal(part["values"], np.asarray(values))


def test_an_overview_is_drawn_with_the_rows_of_its_cells(llama):
    found = analysis.overview(llama.model.embed_tokens.weight[...], shape=(100, 64))
    view = result(found)
    np.testing.assert_array_equal(
        chart(view, "largest magnitude")["values"], np.asarray(found.max_abs)
    )
    np.testing.assert_array_equal(chart(view, "histogram")["values"], found.histogram)
    rows = view.data()["axes"]["row"]
    assert (rows["names"][1], rows["lasts"][1], rows["lasts"][-1]) == (21, 41, 2047)


def test_tables_are_sent_as_texts_and_numbers_to_sort_by(llama):
    numbers = (0.1, 0.2, -1.0, 1.0, 3.0, 0, 0, 0)
    names = {"embed_tokens.weight": (2048, 192), "norm.weight": (192,)}
    found = WeightStatistics(
        tuple(Statistics(name, shape, "float32", *numbers) for name, shape in names.items())
    )
    view = result(found)
    columns = {column["name"]: column for column in view.data()["columns"]}
    assert columns["name"]["texts"] == [row.name for row in found]
    assert columns["name"]["order"] is None
    assert columns["shape"]["texts"][0] == "2048 x 192"
    assert columns["mean"]["order"].tolist() == [row.mean for row in found]
    assert view.text() == repr(found) and view.cells() is None
    rows = (
        Difference("a", "point", 0.5, 1.0, (0, 2)),
        Difference("b", "lens", 0.1, 1.0, (1,), 2.0),
    )
    other = result(Comparison(rows))
    columns = {column["name"]: column for column in other.data()["columns"]}
    assert columns["where"]["texts"] == ["0, 2", "1"]
    assert columns["kl"]["texts"] == ["", "2"] and np.isnan(columns["kl"]["order"][0])
    assert len(result(llama.run("Once").check()).data()["columns"]) == 5


def test_a_table_of_any_length_is_bounded():
    view = result(Comparison((Difference("a", "point", 0.5, 1.0, (0, 2)),) * 5000))
    assert view.data()["count"] == 5000
    assert {len(column["texts"]) for column in view.data()["columns"]} == {2000}


def test_what_is_no_result_is_named(llama):
    for other in (llama, 3, "text", jnp.ones(3), None):
        with pytest.raises(TypeError, match=type(other).__name__):
            result(other)
    with pytest.raises(TypeError, match="capture="):
        residual(llama)


def test_the_parts_of_the_stream_are_those_of_the_decomposition(run):
    for row in (0, 1):
        view = residual(run, row=row)
        length = int(run.lengths[row])
        found = analysis.residual_decomposition(run)

        def of(values, row=row, length=length):
            return np.asarray(values, np.float64)[row, :length].T

        final = np.asarray(found.values, np.float64).sum(2)[row, :length]
        expected = {
            "written norm": of(found.norms.values),
            "accumulated stream norm": of(found.accumulated.norms.values),
            "projection on the final stream": np.einsum(
                "pcd,pd->cp", np.asarray(found.values)[row, :length], final
            )
            / (final**2).sum(-1),
        }
        expected["cosine with the final stream"] = (
            expected["projection on the final stream"]
            * np.linalg.norm(final, axis=-1)
            / expected["written norm"]
        )
        for name, values in expected.items():
            drawn = chart(view, name)["values"]
            assert drawn.shape == (9, length)
            np.testing.assert_allclose(drawn, values, rtol=1e-4, atol=1e-6, err_msg=name)
        shares = chart(view, "projection on the final stream")["values"]
        np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
        assert view.data()["axes"]["component"]["names"] == list(found.along("component"))


def test_a_decomposition_is_drawn_as_its_run_is(run, llama):
    whole = residual(llama.run(TEXT, capture=WRITES))
    found = analysis.residual_decomposition(llama.run(TEXT, capture=WRITES), positions=[3, -1])
    view = residual(found)
    assert view.data()["axes"]["position"]["names"].tolist() == [3, 14]
    for one, other in zip(view.data()["charts"], whole.data()["charts"], strict=True):
        np.testing.assert_allclose(one["values"], other["values"][:, [3, 14]], rtol=1e-5, atol=1e-6)
    heads = residual(analysis.residual_decomposition(run, by="head"))
    assert len(heads.data()["axes"]["component"]["names"]) == 1 + 4 * 9


def test_a_column_holds_what_every_component_is_at_a_position(llama, monkeypatch):
    view = residual(llama.run(TEXT, capture=WRITES))
    column = view.answer("column", {"chart": 0, "at": 7})["values"]
    for values, drawn in zip(column, view.data()["charts"], strict=True):
        np.testing.assert_array_equal(values, drawn["values"][:, 7])
    for wrong in ({"chart": 9, "at": 0}, {"chart": 0, "at": 15}, {"chart": 0}):
        with pytest.raises(ViewError):
            view.answer("column", wrong)
    assert not list(view.questions())  # the page has everything
    monkeypatch.setattr("llama_loupe.views.results.WHOLE", 10)
    monkeypatch.setattr("llama_loupe.views.residual.WHOLE", 10)
    view = residual(llama.run(TEXT, capture=WRITES))
    assert view.data()["charts"][0]["values"] is None
    asked = list(view.questions())
    assert sum(what == "column" for what, _ in asked) == 15
    for what, arguments in asked:
        view.answer(what, arguments)


def test_the_first_position_is_the_one_that_is_asked_for(llama):
    run = llama.run(TEXT, capture=WRITES)
    assert residual(run).data()["start"] == {"position": 14}
    assert residual(run, position=-2).selection.token == 13
    selection = Selection(token=3)
    residual(run, position=5, selection=selection)
    assert selection.token == 5
    for wrong in (15, -16):
        with pytest.raises(IndexError):
            residual(run, position=wrong)
    with pytest.raises(IndexError):
        residual(run, row=1)


@pytest.mark.parametrize("reduce", [None, "norm"])
def test_a_run_of_streams_alone_shows_their_norms(llama, reduce):
    view = residual(llama.run(TEXT, Capture(("resid_mid", "resid_post"), reduce=reduce)))
    whole = llama.run(TEXT, capture=("resid_mid", "resid_post"))
    for point in ("resid_mid", "resid_post"):
        drawn = chart(view, f"norm of {point}")["values"]
        expected = [np.linalg.norm(np.asarray(whole[point, i])[0], axis=-1) for i in range(4)]
        np.testing.assert_allclose(drawn, np.stack(expected), rtol=1e-5)
    assert view.data()["charts"][0]["axes"] == ("layer", "position")
    assert "mlp.out" in view.data()["code"]


def test_norms_of_what_is_written_are_shown_without_the_vectors(llama):
    view = residual(llama.run(TEXT, Capture(WRITES, reduce="norm")))
    whole = residual(llama.run(TEXT, capture=WRITES))
    np.testing.assert_allclose(
        chart(view, "written norm")["values"], chart(whole, "written norm")["values"], rtol=1e-6
    )


def test_captured_positions_keep_their_numbers(llama):
    view = residual(llama.run(TEXT, Capture("resid_post", positions=[2, -1])))
    assert view.data()["axes"]["position"]["names"].tolist() == [2, 14]
    last = residual(llama.run(TEXT, Capture(("resid_post", 3), reduce="last")))
    assert last.data()["axes"]["position"]["names"].tolist() == [14]
    assert last.data()["axes"]["layer"]["names"].tolist() == [3]


def test_a_run_without_any_stream_says_what_to_capture(llama):
    view = residual(llama.run("Once upon a time", capture="z"))
    payload = view.payload()
    assert payload["view"] == "empty" and payload["sentence"].startswith("This run holds nothing")
    names: dict = {"llama": llama, "prompt": "Once"}
    exec(payload["code"], names)
    assert residual(names["run"]).payload()["view"] == "result"
    assert view.cells() is None and payload["code"] in view.text()


def test_an_edited_stream_is_no_sum_of_its_parts_and_says_so(llama):
    steer = Steer(("resid_post", 1), jnp.ones(192))
    view = residual(llama.run(TEXT, capture=WRITES, edits=steer))
    assert "layers.1.resid_post" in view.data()["sentence"]
    silent = residual(llama.run(TEXT, capture=WRITES, edits=Ablate(("mlp.out", 2))))
    assert silent.data().get("sentence") is None
    cosine = chart(silent, "cosine with the final stream")["values"]
    assert np.isnan(cosine[6]).all() and np.isfinite(np.delete(cosine, 6, 0)).all()


def test_a_run_without_its_llama_and_one_in_bf16_are_drawn(run, tmp_path):
    llama = Llama.from_pretrained("cria", dtype="bf16")
    narrow = llama.run(TEXT, capture=WRITES)
    found = np.linalg.norm(np.asarray(narrow["embed"], np.float32)[0], axis=-1)
    drawn = chart(residual(narrow), "written norm")["values"]
    np.testing.assert_allclose(drawn[0], found, rtol=1e-5)
    run.save(tmp_path / "a.run")
    alone = type(run).load(tmp_path / "a.run")
    assert residual(alone).data()["pieces"][0] == str(run.tokens[0, 0])


def test_a_model_on_many_devices_is_drawn_the_same(llama):
    mesh = {"data": 2, "tensor": 4}
    spread = Llama.from_pretrained("cria", mesh=mesh)
    texts = [TEXT, "Once upon a time"]
    one = residual(llama.run(texts, capture=WRITES), row=1)
    other = residual(spread.run(texts, capture=WRITES), row=1)
    for a, b in zip(one.data()["charts"], other.data()["charts"], strict=True):
        np.testing.assert_allclose(a["values"], b["values"], rtol=2e-4, atol=1e-5)


def test_hostile_texts_cross_as_they_are():
    pieces = ["</script>", "<img src=x onerror=alert(1)>", "\u202e", "a" * 10_000, "\udc80", "\0"]
    found = Result(
        jnp.ones((2, 6)),
        ("component", "position"),
        coordinates={"component": ["</script>", "\ud800"]},
        pieces=pieces,
        title="</script>\u202e",
    )
    view = result(found)
    packed, buffers = view.packed()
    assert packed["pieces"][0] == "</script>" and len(packed["pieces"][3]) == 100
    json.dumps(packed).encode()
    assert buffers
