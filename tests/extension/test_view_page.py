"""A run on one page, and which view a value is shown by."""

import pathlib
import sys

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

import llama_loupe as loupe
from llama_jax import Llama, Replace, analysis
from llama_loupe.showing import VIEWS, view_of
from llama_loupe.view import ViewError
from llama_loupe.views.page import EVERYTHING

TEXT = "When Mary and John went to"


@pytest.fixture(scope="module")
def llama():
    return Llama.from_pretrained("cria")


@pytest.fixture(scope="module")
def run(llama):
    return llama.run(TEXT, capture=EVERYTHING)


@pytest.fixture
def shell():
    ip = InteractiveShell.instance()
    yield ip
    loupe.unload_ipython_extension(ip)
    InteractiveShell.clear_instance()


def test_a_page_has_all_that_was_captured_with_one_selection(run):
    page = loupe.page(run)
    assert [place for place, _ in page.views] == [
        "tokens",
        "attention",
        "lens",
        "attribution",
        "residual",
    ]
    assert not page.missing
    assert {id(view.selection) for view in page.children} == {id(page.selection)}
    assert page.selection.token == int(run.lengths[0]) - 1
    payload, buffers = page.packed()
    assert [child["view"] for child in payload["children"]][:3] == ["tokens", "attention", "lens"]
    assert sum(map(len, buffers)) < 100_000


def test_what_is_missing_is_named_with_the_code_that_captures_it(llama):
    page = loupe.page(llama.run(TEXT))
    assert [place for place, _ in page.views] == ["tokens"]
    assert page.missing == ["attention", "lens", "attribution", "residual"]
    code = page.payload()["code"]
    names: dict[str, object] = {"llama": llama, "prompt": TEXT}
    exec(code, names)
    assert not loupe.page(names["run"]).missing


def test_a_question_finds_the_view_that_it_is_for(run):
    page = loupe.page(run)
    assert page.at([1]) is page.children[1]
    for path in ([9], [-1], ["0"], [1, 0]):
        with pytest.raises(ViewError, match="no view at"):
            page.at(path)


def test_where_logits_are_nan_no_token_is_named(llama):
    broken = llama.run(
        TEXT, EVERYTHING, edits=Replace(("resid_post", 1), lambda x: x.at[:, 3].set(np.nan))
    )
    lens = loupe.lens(broken)
    found = lens.answer("cells", {"from": 0})
    texts = np.array(found["texts"]).reshape(found["top"].shape)
    assert (texts[2:, 3:] == "NaN").all() and texts[1, 3] == "NaN"
    assert (texts == "NaN").sum() == 15  # a weight of 0 times NaN is NaN
    assert set(lens.answer("cell", {"token": 4, "layer": 3})["texts"]) == {"NaN"}
    assert "attribution" not in dict(loupe.page(broken).views)


def test_the_page_of_a_row_is_of_that_row(llama):
    pair = llama.run(["One day", TEXT], EVERYTHING)
    alone = dict(loupe.page(llama.run(TEXT, EVERYTHING)).views)["attribution"]
    found = dict(loupe.page(pair, row=1).views)["attribution"]
    assert found.title == alone.title and found.selection.row == 1


def test_nothing_that_was_written_can_be_shown(llama):
    data, _ = loupe.tokens(llama.generate(TEXT, max_new_tokens=0))._repr_mimebundle_()
    assert data["text/plain"] and "image/png" not in data


def test_a_run_without_its_llama_shows_what_it_can(run, tmp_path):
    from llama_jax import Run

    run.save(tmp_path / "x.run")
    page = loupe.page(Run.load(tmp_path / "x.run"))
    assert "attention" in dict(page.views) and "lens" in page.missing


def test_every_kind_of_thing_has_its_view(llama, run):
    shown = {
        "page": run,
        "tokens": llama.generate(TEXT, 4),
        "weights": llama,
        "lens": analysis.logit_lens(run),
        "compare": analysis.compare(run, run),
        "result": analysis.head_scores(llama),
    }
    for name, value in shown.items():
        view = view_of(value)
        assert view is not None and view.text(), name
        assert view.name == name or name == "compare"
    assert view_of({"a": 1}) is None and view_of(llama.model) is None


def test_a_cell_that_ends_in_a_run_shows_a_widget_a_picture_and_text(shell, run):
    loupe.load_ipython_extension(shell)
    data, _ = shell.display_formatter.format(run)
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= {*data}
    assert "attention: " in data["text/plain"] and "text/html" not in data


def test_unloading_takes_the_views_away(shell, run):
    before = {*shell.display_formatter.mimebundle_formatter.type_printers}
    loupe.load_ipython_extension(shell)
    loupe.unload_ipython_extension(shell)
    assert {*shell.display_formatter.mimebundle_formatter.type_printers} == before
    assert not {*VIEWS} & before


def test_show_prints_where_there_is_no_notebook(run, capsys):
    loupe.show("a run:", run, {"a": 1})
    said = capsys.readouterr().out
    assert said.startswith("a run:\nRun(") and "lens: " in said and said.endswith("{'a': 1}\n")


def test_export_takes_views_alone(run, tmp_path):
    with pytest.raises(TypeError, match=r"such as loupe.attention\(run\), not Run"):
        loupe.export(run, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("nowhere/x.html", ValueError, r"There is no folder .*nowhere to write to. Make it"),
        ("nowhere/x.html", OSError, "nowhere"),
        ("", ValueError, "path is ''"),
        (".", ValueError, "is a folder; what is written is one file"),
        ("/dev/null", ValueError, "/dev/null is a device"),
        (None, TypeError, "path is None"),
        (3, TypeError, "path is 3"),
    ],
)
def test_where_nothing_can_be_exported_is_named(run, tmp_path, monkeypatch, given, error, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        loupe.export(loupe.tokens(run), given)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(run, tmp_path, monkeypatch):
    place = tmp_path / "x.html"
    place.write_text("the old one")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        loupe.export(loupe.tokens(run), place)
    assert place.read_text() == "the old one" and [*tmp_path.iterdir()] == [place]


def test_a_large_file_is_warned_about(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["llama_loupe.export"], "LARGE", 1000)
    with pytest.warns(UserWarning, match="which a browser opens slowly"):
        size = loupe.export(loupe.attention(run), tmp_path / "x.html")
    assert size == (tmp_path / "x.html").stat().st_size
