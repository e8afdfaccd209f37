"""What the README shows is what happens."""

import contextlib
import io
import pathlib
import re

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_ten_lines_run():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    lines = printed.getvalue().splitlines()
    assert "token=" in lines[0] and "' Mary'" in lines[0]
    assert lines[1].startswith("(1, 8, ")
    assert len(lines) >= 4


def test_every_picture_and_file_that_is_named_exists():
    text = README.read_text("utf-8")
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / path).exists(), path
