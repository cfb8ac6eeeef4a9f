"""`normzoo new`: what it writes, what it says, and what it refuses without writing anything."""

import os
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from commands import normzoo

from normzoo import __version__
from normzoo.cli import new
from normzoo.cli.new import NAME, TEMPLATE, project


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_project_is_the_template_under_its_name(here: Path) -> None:
    result = normzoo("new", "bird_songs")
    assert (result.status, result.err) == (0, "")
    written = files(here / "bird_songs")
    assert {
        path.replace("bird_songs", NAME): text.replace(b"bird_songs", NAME.encode()) for path, text in written.items()
    } == {path: text.encode() for path, text in project(NAME).items()}
    assert all(NAME not in path and NAME.encode() not in text for path, text in written.items())
    assert {".gitignore", ".github/workflows/ci.yml", "src/bird_songs/norm.py"} <= set(written)


def test_a_user_owns_at_most_14_files_and_250_lines(here: Path) -> None:
    """All lines of all files, blank ones and comments too; what it prints is what is there."""
    said = normzoo("new", "bird_songs").out
    counts = {path: text.count(b"\n") for path, text in files(here / "bird_songs").items()}
    assert len(counts) <= 14
    assert sum(counts.values()) <= 250
    assert {path: int(count) for count, path in re.findall(r"^ *(\d+)  (\S+)$", said, re.MULTILINE)} == counts
    assert f"{sum(counts.values())}  lines in {len(counts)} files" in said


def test_scripts_can_be_run_by_whoever_may_read_them(here: Path) -> None:
    normzoo("new", "bird_songs")
    for script in (here / "bird_songs" / "scripts").iterdir():
        assert os.access(script, os.X_OK)
        assert (script.stat().st_mode & 0o444) >> 2 == script.stat().st_mode & 0o111
    assert not os.access(here / "bird_songs" / "README.md", os.X_OK)


def next_commands(said: str) -> list[str]:
    return said.split("next:\n  ")[1].rstrip().split("\n  ")


def test_the_commands_that_come_next_are_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "which", lambda program: program)
    change, *scripts = next_commands(normzoo("new", "deep/er/bird_songs").out)
    assert change == "cd deep/er/bird_songs"
    assert scripts == ["scripts/train", "scripts/test"]
    assert all((here / "deep/er/bird_songs" / script).is_file() for script in scripts)


def test_the_environment_is_activated_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new, "which", lambda program: None)
    assert next_commands(normzoo("new", "bird_songs").out)[0] == f"source {sys.prefix}/bin/activate"


def test_an_empty_folder_is_filled(here: Path) -> None:
    (here / "bird_songs").mkdir()
    os.chdir(here / "bird_songs")
    assert "cd " not in normzoo("new", ".").out
    assert len(files(here / "bird_songs")) == len(project(NAME))


def test_it_depends_on_this_version() -> None:
    [low, high] = re.findall(r'"normzoo>=([\d.]+),<([\d.]+)"', (TEMPLATE / "pyproject.toml").read_text())[0]

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert numbers(low) <= numbers(__version__) < numbers(high)


REFUSED = {
    "my-birds": "such as my_birds",
    "class": "and no keyword",
    "Größe": "ASCII letters",
    "sys": "'sys' is the name",
    "3d": "cannot be the name of a package",
    "_birds": "such as birds",
    "birds_": "such as birds",
    "a.b": "such as a_b",
    "json": "'json' is the name of a module that exists already",
    "torch": "'torch' is the name of a module that exists already",
    "normzoo": "'normzoo' is the name of a module that exists already",
    "full": "full exists and is not an empty folder",
    "file": "file exists and is not",
    "file/birds": "cannot be written",
    "dangling": "dangling exists and is not",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_refusal_writes_nothing(given: str, here: Path) -> None:
    (here / "full").mkdir()
    (here / "full" / "note").write_text("mine")
    (here / "file").write_text("mine")
    (here / "dangling").symlink_to("nowhere")
    before = sorted(here.rglob("*"))
    result = normzoo("new", given)
    assert result.status == 1
    assert REFUSED[given] in result.err
    assert result.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_disk_that_becomes_full_leaves_nothing(here: Path) -> None:
    limit = ["bash", "-c", 'ulimit -f 1; exec "$@"', "limited"]  # no file has more than 1,024 bytes
    command = [*limit, sys.executable, "-m", "normzoo", "new", "deep/birds"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written (File too large)" in done.stderr
    assert list(here.iterdir()) == []


def into(folder: Path, contents: dict[str, str]) -> str:
    """Adds the project to a folder with these files, and returns what was said; none of them has changed."""
    for path, text in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    result = normzoo("new", str(folder), "--into")
    assert result.status == 0, result.err
    assert {path: text for path, text in files(folder).items() if path in contents} == {
        path: text.encode() for path, text in contents.items()
    }
    return result.out


def test_into_a_repository_adds_what_is_missing(here: Path) -> None:
    mine = {
        "pyproject.toml": '[project]\nname = "bird-songs"\nversion = "1"\ndependencies = ["numpy"]\n',
        ".gitignore": "__pycache__\n/data/\n",
        "src/bird_songs/__init__.py": "",
        "src/bird_songs/net.py": "mine = 1\n",
    }
    said = into(here / "repo", mine)
    assert files(here / "repo").keys() == project("bird_songs").keys()
    assert {line.split(": ")[1] for line in said.splitlines() if line.startswith("kept yours: ")} == set(mine)
    assert 'dependencies = ["normzoo>=' in said
    assert '[project.entry-points."normzoo.packages"]\n  bird_songs = "bird_songs"' in said
    assert added(said, ".gitignore") == [".venv/", "/lightning_logs/"]
    assert len(added(said, "src/bird_songs/__init__.py")) == 4


def added(said: str, path: str) -> list[str]:
    """The lines to add to a file."""
    return [line[2:] for line in said.split(f"add to {path}:\n")[1].split("\n\n")[0].splitlines()]


def test_into_a_repository_whose_pyproject_has_settings_only(here: Path) -> None:
    """With the lines it is a project that can be installed."""
    said = into(here / "birds", {"pyproject.toml": "[tool.ruff]\nline-length = 100\n"})
    whole = tomllib.loads((here / "birds" / "pyproject.toml").read_text() + "\n".join(added(said, "pyproject.toml")))
    ours = tomllib.loads(project("birds")["pyproject.toml"])
    assert (whole["project"], whole["build-system"]) == (ours["project"], ours["build-system"])


def test_into_a_repository_of_setuptools(here: Path) -> None:
    """A pyproject.toml without a name would break its installation."""
    said = into(here / "birds", {"setup.py": "mine = 1\n", ".gitignore": ""})
    assert "kept yours: setup.py" in said
    dependency, entry = added(said, "setup.py")
    assert dependency.startswith('install_requires=["normzoo>=')
    assert entry == 'entry_points={"normzoo.packages": ["birds = birds"]},'
    said = into(here / "fish", {"setup.cfg": "[metadata]\nname = fish\n"})
    settings = ConfigParser()
    settings.read_string("\n".join(added(said, "setup.cfg")))
    assert settings["options.entry_points"]["normzoo.packages"].split() == ["fish", "=", "fish"]


def test_into_a_repository_with_a_linter_and_another_encoding(here: Path) -> None:
    """Its setup.cfg names no project."""
    (here / "birds").mkdir()
    (here / "birds" / "setup.cfg").write_text("[flake8]\nmax-line-length = 100\n")
    (here / "birds" / ".gitignore").write_bytes("# Vögel\n".encode("latin-1"))
    said = normzoo("new", "birds", "--into").out
    assert (here / "birds" / "pyproject.toml").is_file()
    assert len(added(said, ".gitignore")) == 4


def test_into_a_repository_that_has_it_asks_for_nothing(here: Path) -> None:
    contents = project("birds")
    said = into(here / "repo", {**contents, ".gitignore": contents[".gitignore"] + "more\n"})
    assert "add to" not in said
    assert "0  lines in 0 files" in said


def test_into_a_folder_without_src_writes_beside_its_modules(here: Path) -> None:
    said = into(here / "my-birds", {"my_birds/__init__.py": "", "setup.py": "mine = 1\n"})
    assert added(said, "my_birds/__init__.py")[0] == "from my_birds.data import Data as Data"
    written = files(here / "my-birds")
    assert b"in `my_birds/`" in written["README.md"]
    assert "my_birds/norm.py" in written
    assert not {"pyproject.toml", "src/my_birds/norm.py"} & written.keys()


def test_into_where_a_file_is_in_the_way_writes_nothing(here: Path) -> None:
    (here / "birds").mkdir()
    (here / "birds" / "scripts").write_text("mine")
    result = normzoo("new", "birds", "--into")
    assert result.status == 1
    assert "cannot be written" in result.err
    assert files(here) == {"birds/scripts": b"mine"}
    assert [path.name for path in (here / "birds").iterdir()] == ["scripts"]


def test_into_needs_a_folder_and_toml_that_can_be_read(here: Path) -> None:
    assert "is not a folder" in normzoo("new", "birds", "--into").err
    (here / "pyproject.toml").write_text("[project\n")
    assert "pyproject.toml cannot be read" in normzoo("new", ".", "--into").err
    assert [path.name for path in here.iterdir()] == ["pyproject.toml"]
