"""The page docs/data.md: its program runs, with what it says that it needs, and prints what is in the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from events import Events, small_run

from normzoo.page.event_log import EventLog
from normzoo.page.run_data import run_data

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


def test_the_keys_of_a_run_are_those_of_the_page(tmp_path: Path) -> None:
    log = EventLog(small_run(tmp_path))
    log.update()
    table = PAGE.read_text(encoding="utf-8").split("| key of a run | value |")[1]
    keys = [key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(run_data("run", log))
