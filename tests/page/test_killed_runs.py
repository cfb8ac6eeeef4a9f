"""A run that was killed and resumed shows the tables of one that was left alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import QUIET
from forks import Forks

from normzoo.page.event_log import EventLog
from normzoo.page.run_data import run_data

MONITORS = [
    {"class_path": f"normzoo.callbacks.{name}", "init_args": {"every": every}}
    for name, every in {"RunningStatistics": 2, "CovariateShift": 3, "GradientFlow": 1}.items()
]
FLAGS = (
    *QUIET,
    "--model.net.hidden=[12,10]",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=10",
    "--checkpoint_steps=4",
    "--monitors=false",  # but for these:
    f"--trainer.callbacks={json.dumps(MONITORS)}",
)
EXPERIMENT = "lightning_logs/default"


def tables(folder: Path) -> dict[str, Any]:
    log = EventLog(folder)
    log.update()
    assert log.notes == []
    data = run_data("run", log)
    assert data["finished"]
    return {**data["tables"], **data["channels"], **data["scalars"]}


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path)
    yield started
    started.close()


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_whole(forks: Forks, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    assert forks.run("fit", *FLAGS, cwd=alone).poll() == 0
    command: tuple[str, ...] = ("fit", *FLAGS)
    for kill in (7, 3, 9, None):
        before = f"import kills; kills.kill('step', {kill}, True)" if kill else ""
        assert forks.run(*command, cwd=killed, before=before).poll() == (-9 if kill else 0)
        if kill == 7:
            [run] = (killed / EXPERIMENT).iterdir()
            live, command = EventLog(run), ("resume", EXPERIMENT)
        live.update()  # as the tab does
    expected, found, in_tab = tables(alone / EXPERIMENT / run.name), tables(run), run_data("run", live)
    assert len(list(run.glob("*tfevents*"))) > 2
    assert set(found) == set(expected)
    for name, table in expected.items():
        assert found[name]["steps"] == table["steps"]
        np.testing.assert_array_equal(found[name]["values"], table["values"])
    for name, table in in_tab["tables"].items():
        np.testing.assert_array_equal(table["values"], expected[name]["values"])
