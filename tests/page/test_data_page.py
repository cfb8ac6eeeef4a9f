"""The page docs/data.md: its program runs, with what it says that it needs, and prints what is in the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from events import Events, small_run

from normzoo.page.comparison import comparison
from normzoo.page.event_log import EventLog
from normzoo.page.outcome import Outcome
from normzoo.page.run_data import run_data
from normzoo.runs.state import State

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "table.py"
    file.write_text(code)
    return file


def test_the_program_is_short_and_needs_little(program: Path) -> None:
    code = program.read_text()
    nodes = list(ast.walk(ast.parse(code)))
    imported = {name.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert len(code.splitlines()) <= 30
    assert imported - sys.stdlib_module_names == {"numpy", "tensorboard"}


def test_the_program_prints_a_table(program: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=2)
    events = Events(run, number=1)
    events.table(1, "normalization/GradientFlow", [[np.nan, 7], [np.nan, np.nan]])
    events.table(2, "normalization/GradientFlow", [[1]], ["net.ü"], ["flow_norm"])
    result = subprocess.run([sys.executable, str(program), str(run)], capture_output=True, text=True, check=True)
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "step 0",
        "net.0 flow_norm 0 grad_norm 1",
        "net.1 flow_norm 10 grad_norm 11",
        "step 1",
        "net.0 flow_norm 100 grad_norm 7",
        "net.1 flow_norm 110 grad_norm 111",
        "step 2",
        "net.ü flow_norm 1",
    ]


def keys_of(what: str) -> list[str]:
    """The keys in a table of the page."""
    table = PAGE.read_text(encoding="utf-8").split(f"| key of {what} | value |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return sorted(key for row in rows for key in re.findall(r"`(\w+)`", row))


def test_the_keys_of_a_run_are_those_of_the_page(tmp_path: Path) -> None:
    log = EventLog(small_run(tmp_path))
    log.update()
    assert keys_of("a run") == sorted(run_data("run", log))


def test_the_keys_of_a_comparison_are_those_of_the_page() -> None:
    runs = [Outcome(norm, norm, 0, state=State.FINISHED, curves={"val/loss": {0: 1.0}}) for norm in "AB"]
    found = comparison(runs)
    assert found is not None
    assert keys_of("a comparison") == sorted(found.keys() - {"version"})
    assert keys_of("an arm") == sorted(found["arms"][1])
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in found["arms"][1]["difference"])
