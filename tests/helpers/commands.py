"""The command line as tests call it: in this process, since a new one takes five seconds to import Lightning."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normzoo.__main__ import main

# Of Lightning's own use of jsonargparse.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

# What a test run has no use for, and what takes time.
QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
SHORT = ("--monitors=false", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3")
BRIEF = (*QUIET, "--trainer.fast_dev_run=true")


@dataclass(frozen=True)
class Result:
    """What a command left behind: its exit status, and what it said."""

    status: int
    out: str
    err: str


def normzoo(*arguments: str) -> Result:
    """Runs `normzoo ARGUMENTS` in this process and leaves the process as it was."""
    out, err = io.StringIO(), io.StringIO()
    status: Any
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.dict(os.environ),
        patch.object(sys, "path", [*sys.path]),  # the command adds the current folder
        patch("normzoo.cli.runtime.ctypes"),  # the C library's settings would stay for all tests that follow
    ):
        os.environ.pop("NORMZOO_TRACEBACK", None)
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code or 0
    return Result(status, out.getvalue(), err.getvalue())


def fit(*arguments: str) -> Path:
    """Trains quietly, without monitors, and returns the run's folder."""
    result = normzoo("fit", "--monitors=false", *QUIET, *arguments)
    assert result.status == 0, result.err
    [line] = [line for line in result.out.splitlines() if line.startswith("run ")]
    return Path(line.split(maxsplit=1)[1]).resolve()


def process(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs `normzoo ARGUMENTS` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "normzoo", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, as TensorBoard reads them from the event files of a run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
