"""docs/surgery.md: its examples run, and print what the page shows."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "surgery.md").read_text(encoding="utf-8")


def words(printed: str) -> list[str]:
    """Without measured numbers, which depend on the machine."""
    return re.sub(r"\d\.\d+|\d+e[-+]\d+", "#", printed).split()


@pytest.mark.slow
def test_the_examples_print_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.DOTALL):
        exec(compile(code, "docs/surgery.md", "exec"), names)
        assert words(capsys.readouterr().out) == words(shown), code
