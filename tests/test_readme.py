"""What the README shows is what happens."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_all_of_its_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = []
    for code in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as lines:
            exec(code, names)
        printed.append(lines.getvalue().splitlines())
    first, looked, kept, changed, talked, asked, shared = printed
    assert "token=" in first[0] and "' Mary'" in first[0]
    assert first[1].startswith("(1, 8, ") and len(first) >= 4
    assert looked[0].startswith("Run(1 x 11 tokens") and "4 layers x 8 heads" in looked[-2]
    assert int(looked[-1]) == (tmp_path / "run.html").stat().st_size
    assert 0 < float(kept[0].split()[0]) < 1 and kept[-1].startswith("total: ")
    assert (tmp_path / "one-day.run").is_file()
    assert "token=" in changed[0] and changed[-1] == "(1, 15, 192) (192, 256)"
    assert talked[0] == "Hello, Rosa! How are you? eot"
    assert any(line.startswith("Tools: brave_search") for line in talked)
    assert "{'layer': 0, 'head': 3}" in asked[0] and "' John'" in asked[1]
    assert "AttentionMap(15 keys" in asked[3] and asked[4].startswith("HeadScores(4 layers x 8")
    assert shared[1].split()[1:5] == ["all", "0–7", "0–3", "9.4"] and "fits" in " ".join(shared)
    assert float(asked[5]) > 0.5 and asked[6].startswith("640 x 192 float32: mean")


def test_every_picture_and_file_that_is_named_exists():
    text = README.read_text("utf-8")
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for path in [*pictures, *re.findall(r"\]\(((?!http)[^)]+)\)", text)]:
        assert (README.parent / path).exists(), path
