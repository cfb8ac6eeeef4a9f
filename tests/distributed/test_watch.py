"""A rank that dies or stands still: all others end soon, and one says which and why. And ranks that others started."""

import contextlib
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import QUIET, normzoo
from forks import Fork, Forks

from normzoo.distributed.watch import ended, state_of

# What a run of the command line leaves beside its events.
KEPT = {"config.yaml", "hparams.yaml", "checkpoints", "finished", ".lock"}
TWO = (*QUIET, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1", "--test_after_fit=false")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("", 0))
        return str(one.getsockname()[1])


def started(
    forks: Forks, folder: Path, *arguments: str, variables: list[dict[str, str]], before: str = ""
) -> list[Fork]:
    """A process for each rank, with the variables that its launcher sets."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [forks.start(*arguments, cwd=folder, before=before, **address, **own) for own in variables]


def by_hand(ranks: int = 2) -> list[dict[str, str]]:
    return [{"LOCAL_RANK": str(rank)} for rank in range(ranks)]


# rank, place, deed, what a message says, and the seconds within which all is over
BREAKS = [
    (1, "train", "SIGKILL", r"rank 1 \(process \d+\) has ended before the run did", 15),
    (0, "train", "SIGKILL", r"rank 0 \(process \d+\) has ended before the run did", 15),
    (1, "train", "SIGTERM", r"rank 1 \(process \d+\) has ended before the run did", 15),
    (0, "train", "SIGTERM", r"rank 0 \(process \d+\) has ended before the run did", 15),
    (1, "train", "raise", r"error on rank 1:.*ZeroDivisionError: on purpose", 15),
    (0, "val", "raise", r"error on rank 0:.*ZeroDivisionError: on purpose", 15),
    (1, "val", "exit", r"rank 1 \(process \d+\) has ended before the run did", 15),
    (0, "save", "SIGKILL", r"rank 0 \(process \d+\) has ended before the run did", 15),
    (1, "setup", "raise", r"error on rank 1:.*ZeroDivisionError: on purpose", 15),
    (1, "train", "SIGSTOP", r"rank 0 has waited 3 s for the others: rank 1 was stopped by a signal", 25),
    (1, "train", "loop", r"rank 0 has waited 3 s for the others: rank 1 stands at \S*breaking.py:\d+, in act", 25),
    (0, "val", "loop", r"rank 1 has waited 3 s for the others: rank 0 stands at \S*breaking.py:\d+, in act", 25),
]


@pytest.mark.slow
@pytest.mark.parametrize("rank,where,how,message,seconds", BREAKS, ids=lambda value: str(value)[:8])
def test_a_broken_rank_ends_all(
    rank: int, where: str, how: str, message: str, seconds: float, forks: Forks, tmp_path: Path
) -> None:
    tests = str(Path(__file__).parents[1] / "helpers")
    before = f"import sys; sys.path.insert(0, {tests!r}); import breaking; breaking.arrange({rank}, {where!r}, {how!r})"
    ranks = started(forks, tmp_path, "fit", *TWO, "--patience=3", variables=by_hand(), before=before)
    try:
        statuses = [one.wait(90) for one in ranks]
        [broken] = re.findall(r"broken at (\S+)", ranks[rank].out)
        assert time.time() - float(broken) < seconds
    finally:
        for one in ranks:
            one.kill()
    said = "\n".join(one.err for one in ranks)
    assert re.search(message, said, re.DOTALL), said
    assert said.count("The run ends.") == (1 if "error on" not in message else said.count("The run ends."))
    assert said.count("Traceback") == (how == "raise")
    assert all(statuses) or how == "exit"
    assert statuses[1 - rank] == 1


@pytest.mark.parametrize("how", ["ddp_spawn", "ddp_fork"])
def test_ranks_of_one_command_are_refused(how: str, tmp_path: Path) -> None:
    result = normzoo("fit", *TWO, f"--trainer.strategy={how}", f"--runs={tmp_path}")
    assert result.status == 1
    assert re.search(rf"strategy={how}: .*use --trainer.strategy=ddp\.", result.err)
    assert list(tmp_path.glob("default/*")) == []


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_the_command_line_started_end_with_each_other(rank: int, forks: Forks, tmp_path: Path) -> None:
    """None outlives the others; the message says how the child has ended."""
    run = forks.start("fit", *TWO, "--trainer.max_epochs=10000", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        last = tmp_path / "lightning_logs/default/000/checkpoints/last.ckpt"
        while not last.exists():
            assert time.monotonic() < deadline, run.err
            time.sleep(0.1)
        [child] = children_of(run.pid)
        os.kill(child if rank else run.pid, signal.SIGKILL)
        assert run.wait(15) == (1 if rank else -signal.SIGKILL)
        while state_of(child) != "gone":
            assert time.monotonic() < deadline + 15
            time.sleep(0.1)
        told = (
            r"rank 1 \(process \d+\) was ended by the signal SIGKILL" if rank else r"rank 0 \(process \d+\) has ended"
        )
        assert re.search(told, run.err), run.err
        assert run.err.count("The run ends.") == 1
    finally:
        run.kill()


def test_how_a_process_has_ended_is_told() -> None:
    assert "without an error" in ended(0)
    assert "status 3" in ended(3)
    assert "SIGTERM" in ended(-signal.SIGTERM)
    assert "memory" in ended(-signal.SIGKILL)


def test_the_state_of_a_process_is_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert state_of(process.pid) == "alive"
        if sys.platform.startswith("linux"):
            process.send_signal(signal.SIGSTOP)
            deadline = time.monotonic() + 10
            while state_of(process.pid) != "stopped":
                assert time.monotonic() < deadline
    finally:
        process.kill()
        process.communicate()
    assert state_of(process.pid) == "gone"


# Ranks that something else has started


def torchrun(rank: int, node: int) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank - node, "GROUP_RANK": node, "WORLD_SIZE": 2}
    return {**{name: str(value) for name, value in own.items()}, "TORCHELASTIC_RUN_ID": "x"}


def slurm(rank: int, node: int) -> dict[str, str]:
    own = {"PROCID": rank, "LOCALID": rank - node, "NODEID": node, "NTASKS": 2, "JOB_ID": 7, "JOB_NAME": "train"}
    nodes = {"NTASKS_PER_NODE": 1 if node or rank == 0 else 2}
    return {f"SLURM_{name}": str(value) for name, value in {**own, **nodes}.items()}


LAUNCHES: dict[str, tuple[list[dict[str, str]], tuple[str, ...]]] = {
    "torchrun": ([torchrun(0, 0), torchrun(1, 0)], ()),
    "torchrun-two-nodes": ([torchrun(0, 0), torchrun(1, 1)], ("--trainer.devices=1", "--trainer.num_nodes=2")),
    "slurm": ([{**slurm(0, 0), "SLURM_NTASKS_PER_NODE": "2"}, slurm(1, 0)], ()),
    "slurm-two-nodes": ([slurm(0, 0), slurm(1, 1)], ("--trainer.devices=1", "--trainer.num_nodes=2")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHES)
def test_ranks_that_others_started_share_a_run(name: str, forks: Forks, tmp_path: Path) -> None:
    variables, flags = LAUNCHES[name]
    ranks = started(forks, tmp_path, "fit", *TWO, *flags, variables=variables)
    assert [one.wait(60) for one in ranks] == [0, 0], ranks[0].err + ranks[1].err
    [run] = (tmp_path / "lightning_logs/default").iterdir()
    assert run.name == "000"
    assert {p.name for p in run.iterdir()} == {*KEPT, *events(run)}
    assert len(events(run)) == 1
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert "run          lightning_logs/default/000" in ranks[0].out
    assert "run " not in ranks[1].out


def events(run: Path) -> list[str]:
    return [p.name for p in run.glob("events*")]


@pytest.mark.slow
def test_ranks_predict_into_one_file_as_one_rank_does(forks: Forks, tmp_path: Path) -> None:
    fork = forks.run("fit", *QUIET, "--trainer.max_epochs=1", cwd=tmp_path)
    assert fork.poll() == 0, fork.err
    run = tmp_path / "lightning_logs/default/000"
    tables: list[list[dict[str, Any]]] = []
    for number, variables in enumerate(([{}], by_hand())):
        flags = ("--ckpt_path=lightning_logs/default/000", f"--output={number}.csv", *(TWO[:-2] if number else QUIET))
        ranks = started(forks, tmp_path, "predict", *flags, variables=variables)
        assert [one.wait(60) for one in ranks] == [0] * len(ranks), ranks[0].err
        assert "predictions" in ranks[0].out
        assert all("predictions" not in one.out for one in ranks[1:])
        tables.append(list(csv.DictReader((tmp_path / f"{number}.csv").read_text().splitlines())))
    assert len(tables[0]) == 360
    assert len(list(tmp_path.glob("*.csv"))) == 2
    assert not list(run.glob("*.csv"))
    for one, many in zip(*tables, strict=True):
        assert float(one.pop("probability")) == pytest.approx(float(many.pop("probability")), abs=1e-6)
        assert one == many
