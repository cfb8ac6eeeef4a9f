"""`normzoo compare`: a grid trains as single runs do, resumes after any kill, and reports each failure as a row."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from alive import is_alive
from commands import QUIET, normzoo, process

from normzoo.cli.coordinator import gpus
from normzoo.compare import Grid
from normzoo.runs import load_checkpoint
from normzoo.runs.state import State, failure

pytestmark = pytest.mark.slow

DEEP = ("--model.net.hidden=[16,16]", "--data.batch_size=32", *QUIET)
SETTINGS = ("norm=BatchNorm,GroupNorm(num_groups=4),NoNorm", "seed=3..4", "model.optimizer.lr=0.1")
LONG = (*DEEP, "--trainer.max_epochs=20", "--checkpoint_steps=7")


def compare(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return process("compare", "--jobs=2", f"--out={folder}", *arguments, cwd=folder.parent, OMP_NUM_THREADS="1")


def states(folder: Path) -> dict[str, State]:
    return Grid.load(folder).states()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of six cells that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("grids") / "undisturbed"
    done = compare(folder, *SETTINGS, *LONG)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_cell_is_an_ordinary_run(undisturbed: Path, tmp_path: Path) -> None:
    """Its weights and files are those of `normzoo fit`, and the other commands take it as one."""
    cell = undisturbed / "001-GroupNorm-3"
    layer = ("--model.net.norm=GroupNorm", "--model.net.norm.num_groups=4", "--model.optimizer.lr=0.1")
    alone = process("fit", *LONG, *layer, "--seed_everything=3", "--runs=runs", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr
    [run] = tmp_path.glob("runs/*/*")
    assert all(torch.equal(value, weights(cell)[name]) for name, value in weights(run).items())
    own = {path.name for path in cell.iterdir() if "tfevents" not in path.name}
    assert own - {"log.txt"} == {path.name for path in run.iterdir() if "tfevents" not in path.name}
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (cell, run))
    assert {key for key in ours if ours[key] != theirs[key]} == {"runs", "experiment"}
    assert normzoo("resume", f"{undisturbed}/1").out.endswith("--trainer.max_epochs=N.\n")


def test_seeds_are_paired(undisturbed: Path) -> None:
    """A seed gives each norm the same first weights and the same order of images: the first losses agree."""
    grid = Grid.load(undisturbed)
    assert [cell["seed"] for cell in grid.cells.values()] == [3, 3, 3, 4, 4, 4]
    configs = [yaml.safe_load((undisturbed / name / "config.yaml").read_text()) for name in grid.cells]
    for seed in (3, 4):
        data = [one["data"] for one in configs if one["seed_everything"] == seed]
        assert len(data) == 3
        assert all(one == data[0] for one in data)


def test_the_same_command_does_nothing_more(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    done = compare(undisturbed, *SETTINGS, *LONG)
    assert done.returncode == 0
    assert "6 cells, 6 have ended" in done.stdout
    assert not done.stderr
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {"grid.yaml", ".lock"}


def test_other_settings_are_listed_and_refused(undisturbed: Path) -> None:
    done = compare(undisturbed, *SETTINGS, *LONG, "--trainer.max_epochs=3", "--model.net.hidden=[8]")
    assert done.returncode == 1
    assert "trainer.max_epochs is 20 there, 3 now" in done.stderr
    assert "model.net.hidden is [16, 16] there, [8] now" in done.stderr
    fewer = compare(undisturbed, "norm=NoNorm", *LONG)
    assert "it varies norm, seed, model.optimizer.lr, and this command norm" in fewer.stderr


@pytest.mark.parametrize("trial", range(int(os.environ.get("NORMZOO_TRIALS", "1"))))
def test_kills_change_nothing(undisturbed: Path, tmp_path: Path, trial: int) -> None:
    """The coordinator or a cell is killed at random, ten times in all; then the grid ends as if nothing had been."""
    draw = random.Random(trial)
    folder = tmp_path / "killed"
    kills = Counter[str]()
    command = [sys.executable, "-m", "normzoo", "compare", "--jobs=2", f"--out={folder}", *SETTINGS, *LONG]
    while kills.total() < 10:
        coordinator = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        running = cells_of(folder, coordinator)
        time.sleep(draw.uniform(0, 1))
        if draw.random() < 0.5 and running:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(draw.choice(running), signal.SIGKILL)
                kills["cell"] += 1
            time.sleep(draw.uniform(0, 1))
        if coordinator.poll() is not None:  # the grid has ended
            break
        coordinator.kill()
        coordinator.wait()
        kills["coordinator"] += 1
    assert min(kills["cell"], kills["coordinator"]) >= 2, kills
    done = compare(folder, *SETTINGS, *LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(states(folder).values()) == {State.FINISHED}
    for run in undisturbed.glob("0*"):
        found, expected = weights(folder / run.name), weights(run)
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), run.name


def cells_of(folder: Path, coordinator: "subprocess.Popen[bytes]") -> list[int]:
    """The processes that train cells, once there are some, or once the coordinator has ended."""
    while coordinator.poll() is None:
        texts = [lock.read_text() for lock in folder.glob("0*/.lock")]
        pids = [int(text.split()[1]) for text in texts if text]
        if alive := [pid for pid in pids if is_alive(pid)]:
            return alive
        time.sleep(0.02)
    return []


def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    """The cells write a checkpoint within their epoch, and the command it prints continues from there."""
    folder = tmp_path / "grid"
    one_epoch = (*DEEP, "--trainer.max_epochs=1", "--data.batch_size=1", "--monitors=false", "norm=LayerNorm,NoNorm")
    command = [sys.executable, "-m", "normzoo", "compare", "--jobs=2", f"--out={folder}", *one_epoch]
    coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    running = cells_of(folder, coordinator)
    time.sleep(2)
    coordinator.send_signal(signal.SIGINT)
    out = coordinator.communicate(timeout=60)[0].decode()
    assert coordinator.returncode == 130, out
    assert f"normzoo compare --out={folder}" in out
    assert not any(map(is_alive, running))
    begun = [name for name, state in states(folder).items() if state == State.INTERRUPTED]
    assert begun, states(folder)
    assert all(load_checkpoint(folder / name / "checkpoints" / "last.ckpt")["epoch"] == 0 for name in begun)
    done = compare(folder)
    assert done.returncode == 0, done.stderr
    assert set(states(folder).values()) == {State.FINISHED}


def test_failures_are_rows(tmp_path: Path) -> None:
    """A norm that the network refuses, a run that diverges and a killed one: the others go to their end."""
    folder = tmp_path / "grid"
    settings = ("norm=InstanceNorm,NoNorm,BatchNorm", "model.optimizer.lr=1e30,0.1", "--trainer.max_epochs=1")
    done = compare(folder, *settings, *DEEP, "--model.net.activation=ReLU")
    assert done.returncode == 1
    found = states(folder)
    assert Counter(found.values()) == {State.FAILED: 2, State.DIVERGED: 2, State.FINISHED: 2}, done.stdout
    refused = [name for name, state in found.items() if state == State.FAILED]
    assert all("InstanceNorm cannot follow a linear layer" in failure(folder / name) for name in refused)
    assert all(f"{name}  failed: InstanceNorm cannot follow" in done.stdout for name in refused)
    assert not any((folder / name / "log.txt").exists() for name in refused), "a refused cell was started"
    again = compare(folder, *settings, *DEEP, "--model.net.activation=ReLU", "--retry")
    assert again.returncode == 1
    assert states(folder) == found


def test_wrong_settings_leave_nothing(tmp_path: Path) -> None:
    """A misspelt flag or layer ends the command before anything is written, with the nearest names."""
    folder = tmp_path / "grid"
    for setting, near in (
        ("model.optimzer.lr=0.1", "Did you mean --model.optimizer"),
        ("norm=BatchNrom,NoNorm", "Did you mean BatchNorm"),
        ("trainer.max_epoch=1,2", "Did you mean --trainer.max_epochs"),
        ("norm=GroupNorm(groups=4)", "Did you mean num_groups"),
    ):
        result = normzoo("compare", setting, f"--out={folder}")
        assert result.status == 1
        assert near in result.err, result.err
        assert not folder.exists()


def test_a_grid_is_extended(tmp_path: Path) -> None:
    """More values make more cells; those that have ended stay as they are. Without settings, all cells are meant."""
    folder = tmp_path / "grid"
    short = (*DEEP, "--trainer.max_epochs=1", "--monitors=false")
    assert compare(folder, "norm=BatchNorm", "seed=0", *short).returncode == 0
    done = compare(folder, "norm=BatchNorm,NoNorm", "seed=0..1", *short)
    assert "4 cells, 1 have ended" in done.stdout
    assert list(states(folder)) == ["000-BatchNorm-0", "001-NoNorm-0", "002-BatchNorm-1", "003-NoNorm-1"]
    assert "4 cells, 4 have ended" in compare(folder).stdout


OWN = "from normzoo.norms import BatchNorm\n\n\nclass MyNorm(BatchNorm):\n    pass\n"


def test_a_norm_of_ones_own(tmp_path: Path) -> None:
    """Whoever types its path allows it, for new cells and for those that are there; `grid.yaml` alone does not."""
    (tmp_path / "my_norms.py").write_text(OWN)
    folder = tmp_path / "grid"
    command = ("norm=NoNorm,my_norms.MyNorm", *DEEP, "--trainer.max_epochs=1", "--monitors=false")
    assert compare(folder, *command).returncode == 0
    (folder / "001-MyNorm-0" / "finished").unlink()
    alone = compare(folder)
    assert alone.returncode == 1
    assert f"{folder}/grid.yaml names classes of my_norms" in alone.stderr
    assert "--allow=my_norms" in alone.stderr
    assert states(folder)["001-MyNorm-0"] == State.INTERRUPTED
    file = folder / "grid.yaml"
    whole = file.read_text()
    file.write_text(whole.replace("command: [", "command: [--allow=my_norms, "))
    assert compare(folder).returncode == 1
    file.write_text(whole)
    assert compare(folder, *command).returncode == 0
    (folder / "001-MyNorm-0" / "finished").unlink()
    allowed = compare(folder, "--allow=my_norms")
    assert allowed.returncode == 0, allowed.stderr
    assert set(states(folder).values()) == {State.FINISHED}


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """While the grid is planned, and while it trains: one message, and the same command continues."""
    folder = small_disk / "grid"
    command = ("norm=NoNorm,BatchNorm", *DEEP, "--trainer.max_epochs=2", "--monitors=false")
    for room in (0, 96 * 1024):
        filled = 2 * 2**20 - room - sum(file.stat().st_size for file in small_disk.rglob("*") if file.is_file())
        with (small_disk / "filler").open("wb", buffering=0) as file:
            file.write(bytes(filled))
        done = compare(folder, *command)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert done.stderr.count("normzoo: error: ") == 1, done.stderr
        message = done.stderr.partition("normzoo: error: ")[2]
        assert f"{small_disk}" in message
        assert "could not be written: No space left on device" in message
        assert "run the same command again" in message
        (small_disk / "filler").unlink()
    assert State.FAILED not in states(folder).values()
    done = compare(folder, *command)
    assert done.returncode == 0, done.stderr
    assert set(states(folder).values()) == {State.FINISHED}


def test_hidden_gpus_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus() == ["2", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus() == ["0", "1"]
