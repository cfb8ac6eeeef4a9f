"""README and the pages under docs/: short, with links that lead somewhere and examples that run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import QUIET, SHORT, fit, normzoo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    seen, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        seen.add(page)
        for link in re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if not link.startswith("https://") and target not in seen:
                pending.append(target)
    assert set(PAGES) <= seen


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL))
def test_python_in_the_readme_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_a_trained_network_exports_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/runs.md, on the run that it names."""
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text.split("## Export\n")[1].split("\n## ")[0], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    fit("-c", str(ROOT / "configs" / "digits_mlp.yaml"), *SHORT)
    names: dict[str, Any] = {"__name__": "runs"}
    exec(compile(code, "docs/runs.md", "exec"), names)
    assert names["logits"].shape == (7, 10)


def test_the_walk_through_works_in_any_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of docs/see.md, on a run that is there."""
    monkeypatch.chdir(tmp_path)
    assert normzoo("fit", *QUIET, *SHORT[1:]).status == 0
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "see.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, "docs/see.md", "exec"), {"__name__": "see"})
    assert b"Normalization" in Path("report.html").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the checkout is no git repository")
def test_the_line_for_a_library_installs_it(tmp_path: Path) -> None:
    [line] = [
        line.split("  #")[0]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("pip install ")
    ]
    _, _, address = shlex.split(line.replace("$PWD", str(ROOT)))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), address]
    anyones = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **anyones})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "normzoo" / "norms" / "batch" / "batch_norm.py").is_file()
