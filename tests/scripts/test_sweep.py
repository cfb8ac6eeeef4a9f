"""`scripts/bench sweep`: killed and started again, it makes the runs that are missing; and the page of its results."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pages import training

SWEEP = Path(__file__).parents[2] / "scripts" / "benches" / "sweep.py"
TINY = ["--only=InstanceNorm", "--epochs=1", "--processes=1"]
RUNS = 2 * 4 * 3  # the two networks with positions, rates, seeds


def runs_of(file: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        return json.loads(file.read_text())["runs"]
    return {}


@pytest.mark.slow
def test_a_killed_sweep_is_continued(tmp_path: Path) -> None:
    file = tmp_path / "training.json"
    command = [sys.executable, str(SWEEP), *TINY, f"--json={file}"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(runs_of(file)) < 5:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    ends_within(10, group=killed.pid)

    report = json.loads(file.read_text())
    found = dict(report["runs"])
    assert 5 <= len(found) < RUNS
    again, kept, *_ = found
    del report["runs"][again]
    report["runs"][kept] = 0.125  # no accuracy of 360 images with four digits
    file.write_text(json.dumps(report))
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert f"{RUNS - len(found) + 1} runs made, {len(found) - 1} found" in done.stdout
    assert f"{RUNS}/{RUNS}" in done.stderr
    made = runs_of(file)
    assert len(made) == RUNS
    assert made == {**made, **found, kept: 0.125}  # the run that was taken out is made anew to the same accuracy
    assert not any(key.startswith("MLP") for key in made)


def test_runs_of_another_budget_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "training.json"
    file.write_text(json.dumps({"budget": {"epochs": 7}, "runs": {}}))
    monkeypatch.syspath_prepend(SWEEP.parent)
    monkeypatch.setattr(sys, "argv", ["sweep", f"--json={file}"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SWEEP), run_name="__main__")
    assert "runs of another budget" in capsys.readouterr().err


def ends_within(seconds: float, *, group: int) -> None:
    """Waits until no process of a group is left: those that train end with the one that was killed."""
    end = time.monotonic() + seconds
    with pytest.raises(ProcessLookupError):  # noqa: PT012 # any of the calls may raise it
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def test_a_page_is_made_of_results() -> None:
    runs = {
        "MLP BatchNorm 0.01 0": 0.5,
        "MLP BatchNorm 0.01 1": 0.9,
        "MLP BatchNorm 0.1 0": 0.8,
        "MLP BatchNorm 0.1 1": 0.8,
        "MLP NoNorm 0.01 0": 0.4,
        "MLP NoNorm 0.01 1": 0.4,
        "MLP NoNorm 0.1 0": None,
        "MLP NoNorm 0.1 1": 0.7,
    }
    budget = {"networks": {"MLP": {"hidden": [4]}}, "epochs": 1, "batch_size": 2, "momentum": 0.9}
    report = {"budget": {**budget, "rates": [0.01, 0.1], "seeds": [0, 1]}, "machine": "a machine", "runs": runs}
    page = training.the_page(report)
    assert "a machine" in page
    assert "| [BatchNorm](zoo.md#batchnorm) | 0.800 | 0.1 | 0 of 4 | 100% |" in page
    assert "| [NoNorm](zoo.md#nonorm) | 0.400 | 0.01 | 1 of 4 | **50%** |" in page
    assert "GroupNorm" not in page
