"""The project that `normzoo new` writes: it trains where it lies, and from a wheel in an environment of its own."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import SHORT, fit

from normzoo.cli.new import NAME, TEMPLATE, project
from normzoo.runs import load_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_counts_what_a_user_owns() -> None:
    files = project(NAME)
    lines = sum(text.count("\n") for text in files.values())
    assert f"{len(files)} files of {lines} lines" in PAGE


def test_the_page_names_every_file() -> None:
    tree = PAGE.split("```\nmy_project/\n")[1].split("```")[0]
    assert all(Path(path).name in tree or path == f"src/{NAME}/__init__.py" for path in project(NAME))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The template's package, as an installation makes it: importable, and allowed in config files."""
    monkeypatch.syspath_prepend(TEMPLATE / "src")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("NORMZOO_ALLOW", NAME)
    yield
    for module in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[module]


def test_it_trains_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importable: None) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit("-c", str(TEMPLATE / "configs" / "train.yaml"), *SHORT)
    assert f"{NAME}.MyNorm" in (run / "config.yaml").read_text()
    assert {"best.ckpt", "last.ckpt"} <= {file.name for file in (run / "checkpoints").iterdir()}
    assert len(list((tmp_path / "data" / "digits").glob("*/*.png"))) == 1797


def test_a_folder_whose_name_is_misspelt_is_not_filled_with_digits(tmp_path: Path, importable: None) -> None:
    from my_project import Data

    data = Data(str(tmp_path / "brids"))
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match="brids"):
        data.setup("fit")
    assert list(tmp_path.iterdir()) == []


class Place:
    """A folder with a copy of the sources, and an environment whose only normzoo comes from it.

    The dependencies are those of the environment of the tests, which spares an installation of PyTorch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, venv = folder, folder / "venv"
        clone = folder / "normzoo"
        shutil.copytree(ROOT / "src", clone / "src")
        for file in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / file, clone)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        site = next(venv.glob("lib/python3*/site-packages"))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment["PATH"] = f"{venv / 'bin'}:{os.environ['PATH']}"
        # Programs of the dependencies lie in another folder.
        for program in ("pytest", "tensorboard"):
            (venv / "bin" / program).write_text(f'#!/bin/sh\nexec {venv}/bin/python -m {program} "$@"\n')

    def shell(self, command: str, *, inside: str = "") -> str:
        """Runs a line of a page, and returns what it said."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder / inside,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """After the first command of the page."""
    place = Place(tmp_path_factory.mktemp("place"))
    place.shell(BLOCKS[0].splitlines()[0])
    return place


@pytest.fixture(scope="module")
def trained(place: Place) -> Place:
    """After the second and the third."""
    _, new, train = BLOCKS[0].splitlines()
    place.shell(new)
    said = place.shell(train)
    accuracy = float(re.findall(r"test/accuracy\W+([\d.]+)", said)[0])
    assert accuracy > 0.96, said
    assert "verdicts: no fault found" in said
    return place


@pytest.mark.slow
def test_normzoo_comes_from_the_wheel(place: Place) -> None:
    where = place.shell("python -c 'import normzoo; print(normzoo.__file__)'").strip()
    assert Path(where).is_relative_to(place.folder / "venv")


@pytest.mark.slow
def test_three_commands_train_a_layer_of_ones_own(trained: Place) -> None:
    assert (
        "norm:\n          class_path: my_project.MyNorm"
        in next((trained.folder / "my_project").glob("lightning_logs/digits/*/config.yaml")).read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [line.split("  ")[0] for line in BLOCKS[1].replace(" --open", "").splitlines()])
def test_a_command_of_the_page_runs(command: str, trained: Place) -> None:
    if "resume" in command:
        command += " --trainer.max_epochs=11"  # the run has finished
    said = trained.shell(command, inside="my_project")
    if "NoNorm" in command:
        assert "verdicts: 1 fault found" in said
    if "predict" in command:
        [file] = (trained.folder / "my_project").glob("lightning_logs/digits/*/predictions.csv")
        rows = list(csv.DictReader(file.read_text().splitlines()))
        assert len(rows) == 179
        assert sum(row["predicted"] == row["label"] for row in rows) > 0.96 * 179


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(trained: Place) -> None:
    project = trained.folder / "my_project"
    command = "exec scripts/train --experiment=killed --trainer.max_epochs=4 --trainer.enable_progress_bar=false"
    with subprocess.Popen(["bash", "-c", command], cwd=project, env=trained.environment) as process:
        file = "lightning_logs/killed/*/checkpoints/last.ckpt"
        while not list(project.glob(file)) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    [killed] = project.glob(file)
    assert not list(project.glob("lightning_logs/killed/*/finished"))
    trained.shell("normzoo resume lightning_logs/killed/000", inside="my_project")
    trained.shell("scripts/train --experiment=whole --trainer.max_epochs=4", inside="my_project")
    [whole] = project.glob("lightning_logs/whole/*/checkpoints/last.ckpt")
    ours, theirs = (load_checkpoint(one)["state_dict"] for one in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_project_of_another_name_passes_its_tests(place: Place) -> None:
    place.shell("normzoo new Bird_songs2")
    assert "4 passed" in place.shell("Bird_songs2/scripts/test")


@pytest.mark.slow
def test_a_repository_with_a_package_of_its_own_trains(place: Place) -> None:
    """With the lines that `--into` says to add."""
    folder = place.folder / "old-repo"
    (folder / "old_repo").mkdir(parents=True)
    (folder / "old_repo" / "__init__.py").write_text("")
    settings = (TEMPLATE / "pyproject.toml").read_text().split("dependencies")[0].replace(NAME, "old-repo")
    (folder / "pyproject.toml").write_text(settings)
    said = place.shell("normzoo new . --into", inside="old-repo")
    [dependency] = re.findall(r"  (dependencies = .*)\n", said)
    [entry] = re.findall(r"  (\[project.entry.*\])\n", said)
    (folder / "pyproject.toml").write_text(f'{settings}{dependency}\n\n{entry}\nold_repo = "old_repo"\n')
    assert "old_repo/net.py" in said
    imports = re.findall(r"^  (from old_repo.*)$", said, re.MULTILINE)
    (folder / "old_repo" / "__init__.py").write_text("\n".join(imports))
    assert "test/accuracy" in place.shell("scripts/train --trainer.max_epochs=1", inside="old-repo")


@pytest.mark.slow
def test_the_wheel_and_the_source_distribution_contain_every_file(place: Place) -> None:
    (place.folder / "normzoo" / "src" / "normzoo" / "template" / ".ruff_cache").mkdir(exist_ok=True)
    (place.folder / "normzoo" / "src" / "normzoo" / "template" / ".ruff_cache" / "x").write_text("")
    place.shell("pip install --quiet hatchling && python -m hatchling build -d ../dist", inside="normzoo")
    [wheel], [source] = (list((place.folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    executable = {path for path, text in project(NAME).items() if text.startswith("#!")}
    with zipfile.ZipFile(wheel) as archive:
        modes = {one.filename: one.external_attr >> 16 for one in archive.infolist()}
    assert contents(modes) == {path: bool(path in executable) for path in project(NAME)}
    with tarfile.open(source) as archive:
        modes = {one.name: one.mode for one in archive.getmembers() if one.isfile()}
    assert contents(modes) == {path: bool(path in executable) for path in project(NAME)}


def contents(modes: dict[str, int]) -> dict[str, bool]:
    """Path -> whether it is executable, of the files of the template in an archive."""
    found = {path.partition("normzoo/template/")[2]: bool(mode & 0o111) for path, mode in modes.items()}
    return {path: executable for path, executable in found.items() if path}
