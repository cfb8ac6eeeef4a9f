"""CONTRIBUTING.md, followed to the letter: its layer, its lines, its commands."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import QUIET, SHORT, fit

from normzoo.norms import Norm, layers
from normzoo.norms._arguments import keyword_defaults

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block and the text before it, back to the block or heading above."""

    code: str
    before: str

    @property
    def path(self) -> str:
        """The last file that the text names."""
        return re.findall(r"`([\w/]+\.\w+)`", self.before)[-1]


def blocks(heading: str) -> list[Block]:
    """The fenced blocks under a heading."""
    [section] = [part for part in TEXT.split("\n## ") if part.startswith(heading)]
    parts = re.split(r"^```\w*\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [Block(code, before) for before, code in zip(parts[::2], parts[1::2], strict=False)]


NORM = blocks("Add a norm")
OWN = blocks("Use your own layer")
NAME = re.findall(r"^class (\w+)", NORM[0].code, flags=re.MULTILINE)[-1]


def commands(block: Block) -> list[list[str]]:
    return [line.split("  #")[0].split() for line in block.code.splitlines()]


def follow(root: Path) -> None:
    """Does what the section says to a copy of the project."""
    layer, line, formula, row, _ = NORM
    (root / layer.path).write_text(layer.code)
    table = root / line.path
    lines = table.read_text().splitlines(keepends=True)
    assert "order of the alphabet" in line.before
    later = next(i for i, other in enumerate(lines) if other.startswith("from ") and other > line.code)
    table.write_text("".join([*lines[:later], line.code, *lines[later:]]))
    tests = root / formula.path
    above, opening, below = tests.read_text().partition("REFERENCES: dict[str, Reference] = {\n")
    assert opening
    assert "above `REFERENCES`" in formula.before
    assert "row in `REFERENCES`" in row.before
    tests.write_text(f"{above.rstrip()}\n\n\n{formula.code}\n\n{opening}{row.code}{below}")


def test_the_example_is_not_in_the_zoo_already() -> None:
    assert NAME not in layers(), "CONTRIBUTING.md needs another example: this one is no news"


def test_every_file_and_script_that_is_named_is_there() -> None:
    new = {NORM[0].path, OWN[0].path}
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]+|[A-Z]+\.md)`", TEXT)) | set(
        re.findall(r"^(scripts/\w+|bash \S+)", TEXT)
    )
    for path in named - new:
        assert (ROOT / path.removeprefix("bash ")).exists(), path


def import_file(path: Path) -> dict[str, type[Norm]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def test_the_layer_is_its_formula(tmp_path: Path) -> None:
    file = tmp_path / "layer.py"
    file.write_text(NORM[0].code)
    layer = import_file(file)[NAME](6)
    family = importlib.import_module(NORM[2].path.removeprefix("tests/").removesuffix(".py").replace("/", "."))
    names = dict(vars(family))
    exec(NORM[2].code, names)
    formula = eval(f"{{{NORM[3].code}}}", names)[NAME].formula
    for shape in ((4, 6), (4, 6, 3), (4, 6, 3, 2)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        state = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        expected = formula(x, state, True, **keyword_defaults(type(layer)))
        torch.testing.assert_close(layer(x), expected)


def test_the_layer_trains_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path(OWN[0].path).write_text(OWN[0].code)
    [[command, *arguments]] = commands(OWN[1])
    assert (command, arguments[0]) == ("normzoo", "fit")
    run = fit(*SHORT, *arguments[1:])
    assert "my_norms.MeanAbsoluteNorm" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_a_norm_is_added_as_it_says(tmp_path: Path) -> None:
    """In a copy of the project: what it says to write, and then every command, each in a process of its own."""
    for folder in ("src", "tests", "configs", "scripts", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    follow(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    said = []
    for program, *arguments in commands(NORM[-1]):
        module = {"scripts/test": "pytest", "normzoo": "normzoo"}[program]
        brief = (*QUIET, *SHORT) if arguments[0] == "fit" else ()
        # What the copy's CONTRIBUTING.md describes is already done in it.
        left_out = ("--deselect=tests/test_contributing.py",) if module == "pytest" else ()
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, *brief, *left_out],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
        said.append(done.stdout)
    laws, card, trained = said
    assert int(re.findall(r"(\d+) passed", laws)[-1]) > 100
    assert card.startswith(f"{NAME}(num_features)")
    assert "test/accuracy" in trained
    for lint in ("check", "format --check"):
        ruff = [sys.executable, "-m", "ruff", *lint.split(), NORM[0].path, NORM[1].path, NORM[2].path]
        assert subprocess.run(ruff, cwd=tmp_path, check=False).returncode == 0
