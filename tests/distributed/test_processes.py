"""The processes of a run with several ranks: slow ranks are waited for, and failures of one rank end all."""

import contextlib
import csv
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import QUIET, normzoo
from forks import Fork, Forks

from normzoo.distributed import processes

# What a run of the command line writes beside its events.
KEPT = {"config.yaml", "hparams.yaml", "checkpoints", "finished", ".lock", "verdicts.json"}
TWO = (*QUIET, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1", "--test_after_fit=false")
BRIEF_TIMEOUT = ("--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:03")
HELPERS = str(Path(__file__).parents[1] / "helpers")


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


def local_ranks(ranks: int = 2) -> list[dict[str, str]]:
    return [{"LOCAL_RANK": str(rank)} for rank in range(ranks)]


def disturbed(forks: Forks, folder: Path, rank: int, where: str, how: str, *flags: str) -> list[Fork]:
    """Two ranks of a run of which one is disturbed: see `breaking.disturb`."""
    before = (
        f"import sys; sys.path.insert(0, {HELPERS!r}); import breaking; breaking.disturb({rank}, {where!r}, {how!r})"
    )
    folder.mkdir(exist_ok=True)
    return started(forks, folder, "fit", *TWO, *flags, variables=local_ranks(), before=before)


# Slow ranks

# Seconds for which a rank sleeps; the watchdog that once was ended healthy runs after 40.
SLOW = os.environ.get("SLOW_RANK_SECONDS", "5")
SLOW_RANKS = [
    (1, "training_step"),
    (0, "on_save_checkpoint"),
    (0, "fsync"),
    (0, "on_validation_end"),
    (0, "on_fit_end"),
    (1, "on_fit_end"),
    (1, "setup"),
    (0, "prepare_data"),
    (1, "train_dataloader"),
    (0, "val_dataloader"),
    (1, "configure_model"),
    (0, "configure_optimizers"),
    (1, "validation_step"),
]


def assert_agreed(ranks: list[Fork], seconds: float) -> None:
    """Both ranks ended well, after one of them was slow, with the same weights."""
    assert [rank.wait(seconds) for rank in ranks] == [0, 0], ranks[0].err + ranks[1].err
    assert any("disturbed at" in rank.out for rank in ranks)
    [one], [two] = (re.findall(r"weights (\S+)", rank.out) for rank in ranks)
    assert one == two


@pytest.fixture(scope="module")
def slow_ranks(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[Fork]]:
    """All runs at once: they sleep most of the time."""
    folder = tmp_path_factory.mktemp("slow")
    return {
        (rank, where): disturbed(forks, folder / f"{where}{rank}", rank, where, SLOW, "--trainer.limit_train_batches=8")
        for rank, where in SLOW_RANKS
    }


@pytest.mark.slow
@pytest.mark.parametrize("rank,where", SLOW_RANKS)
def test_a_slow_rank_is_waited_for(rank: int, where: str, slow_ranks: dict[tuple[int, str], list[Fork]]) -> None:
    assert_agreed(slow_ranks[rank, where], 300)


@pytest.mark.slow
def test_a_rank_slower_than_the_other_is_waited_for(forks: Forks, tmp_path: Path) -> None:
    """A short case of the above."""
    assert_agreed(disturbed(forks, tmp_path, 0, "on_save_checkpoint", "0.5", "--trainer.limit_train_batches=3"), 60)


# Ranks that fail

# rank, place, what it does there, what the other rank reports
FAILURES = [
    (1, "training_step", "SIGKILL", "Connection"),
    (0, "training_step", "SIGKILL", "Connection"),
    (0, "validation_step", "raise", "Connection"),
    (1, "validation_step", "exit", "Connection"),
    (0, "on_save_checkpoint", "SIGKILL", "Connection"),
    (1, "setup", "raise", "Connection"),
    (1, "training_step", "SIGSTOP", "[Tt]imed out"),
    (0, "training_step", "SIGSTOP", "[Tt]imed out"),
    (1, "training_step", "loop", "[Tt]imed out"),
]


def assert_other_ends(rank: int, how: str, message: str, ranks: list[Fork]) -> None:
    """The other rank ends with an error within 15 s of the failure, and the failed one with its own message."""
    try:
        other, failed = ranks[1 - rank], ranks[rank]
        assert other.wait(90) == 1, other.err
        [broken] = re.findall(r"disturbed at (\S+)", failed.out)
        assert time.time() - float(broken) < 15
        assert re.search(message, other.err), other.err
        if how in ("raise", "exit", "SIGKILL"):
            assert failed.wait(15) == {"raise": 1, "exit": 0, "SIGKILL": -signal.SIGKILL}[how], failed.err
        assert ("ZeroDivisionError: on purpose" in failed.err) == (how == "raise")
    finally:
        for one in ranks:
            one.kill()


@pytest.mark.slow
@pytest.mark.parametrize("rank,where,how,message", FAILURES)
def test_a_failed_rank_ends_the_other(
    rank: int, where: str, how: str, message: str, forks: Forks, tmp_path: Path
) -> None:
    assert_other_ends(rank, how, message, disturbed(forks, tmp_path, rank, where, how, *BRIEF_TIMEOUT))


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_other(forks: Forks, tmp_path: Path) -> None:
    """A short case of the above."""
    ranks = disturbed(forks, tmp_path, 1, "training_step", "raise")
    assert_other_ends(1, "raise", "Connection", ranks)


@pytest.mark.slow
@pytest.mark.parametrize("senders", [[0, 1], [0], [1]], ids=["all", "first", "second"])
def test_sigterm_ends_a_run_with_one_sentence(senders: list[int], forks: Forks, tmp_path: Path) -> None:
    """Whatever the ranks are computing: at once, and with status 143."""
    ranks = disturbed(forks, tmp_path, 0, "training_step", "0", "--trainer.max_epochs=10000")
    try:
        deadline = time.monotonic() + 60
        while "disturbed at" not in ranks[0].out:
            assert time.monotonic() < deadline, ranks[0].err
            time.sleep(0.05)
        for rank in senders:
            ranks[rank].kill(signal.SIGTERM)
        statuses = [one.wait(15) for one in ranks]
        assert [statuses[rank] for rank in senders] == [143] * len(senders), ranks[0].err
        if 0 in senders:
            assert ranks[0].err.count("ended by SIGTERM") == 1
            assert "Traceback" not in ranks[0].err
    finally:
        for one in ranks:
            one.kill()


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    return True


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_the_command_started_end_with_it(rank: int, forks: Forks, tmp_path: Path) -> None:
    """When one is killed, neither outlives the other."""
    run = forks.start("fit", *TWO, "--trainer.max_epochs=10000", cwd=tmp_path)
    try:
        deadline = time.monotonic() + 90
        last = tmp_path / "lightning_logs/default/000-BatchNorm-0/checkpoints/last.ckpt"
        while not last.exists():
            assert time.monotonic() < deadline, run.err
            time.sleep(0.1)
        [child] = children_of(run.pid)
        os.kill(child if rank else run.pid, signal.SIGKILL)
        assert run.wait(30) != 0
        while not is_gone(child):
            assert time.monotonic() < deadline + 30
            time.sleep(0.1)
    finally:
        run.kill()


HANG = """
import time
from lightning.pytorch import Callback

class Hang(Callback):
    def on_train_batch_end(self, trainer, *_):
        while trainer.global_rank == 1:
            time.sleep(1)
"""


@pytest.mark.slow
def test_a_rank_that_hangs_does_not_outlive_the_command(forks: Forks, tmp_path: Path) -> None:
    """The rank that waits for it times out, ends the command, and kills the other."""
    (tmp_path / "hang.py").write_text(HANG)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])  # of the rank that is started
    # That rank has to come within the timeout too.
    flags = ("--trainer.strategy=DDPStrategy", "--trainer.strategy.timeout=0:00:20", "--trainer.callbacks=hang.Hang")
    before = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"  # of the rank that starts it
    run = forks.start("fit", *TWO, *flags, cwd=tmp_path, before=before, PYTHONPATH=path)
    try:
        children: list[int] = []
        deadline = time.monotonic() + 90
        while run.poll() is None:
            children = children_of(run.pid) or children
            assert time.monotonic() < deadline, run.err
            time.sleep(0.1)
        assert re.search("[Tt]imed out", run.err), run.err
        assert all(map(is_gone, children)), "it was left behind"
        assert children
    finally:
        run.kill()


def test_processes_that_do_not_exit_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the grace period that others use to exit by themselves."""
    monkeypatch.setattr(processes, "GRACE", 0.3)
    commands = (["true"], ["sleep", "60"])
    started = [subprocess.Popen(command) for command in commands]
    processes.end_processes(started)
    assert [process.wait(10) for process in started] == [0, -signal.SIGKILL]


@pytest.mark.parametrize("how", ["ddp_spawn", "ddp_fork"])
def test_ranks_that_copy_the_command_are_refused(how: str, tmp_path: Path) -> None:
    result = normzoo("fit", *TWO, f"--trainer.strategy={how}", f"--runs={tmp_path}")
    assert result.status == 1
    assert re.search(r"strategy: .*use --trainer.strategy=ddp\.", result.err)
    assert list(tmp_path.glob("default/*")) == []


# Ranks that torchrun or SLURM started


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
def test_ranks_of_a_launcher_share_a_run(name: str, forks: Forks, tmp_path: Path) -> None:
    variables, flags = LAUNCHES[name]
    ranks = started(forks, tmp_path, "fit", *TWO, *flags, variables=variables)
    assert [one.wait(60) for one in ranks] == [0, 0], ranks[0].err + ranks[1].err
    [run] = (tmp_path / "lightning_logs/default").iterdir()
    assert run.name == "000-BatchNorm-0"
    assert {p.name for p in run.iterdir()} == {*KEPT, *events(run)}
    assert len(events(run)) == 1
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert "run          lightning_logs/default/000-BatchNorm-0" in ranks[0].out
    assert "run " not in ranks[1].out


def events(run: Path) -> list[str]:
    return [p.name for p in run.glob("events*")]


@pytest.mark.slow
def test_ranks_predict_into_one_file_as_one_rank_does(forks: Forks, tmp_path: Path) -> None:
    fork = forks.run("fit", *QUIET, "--trainer.max_epochs=1", cwd=tmp_path)
    assert fork.poll() == 0, fork.err
    run = tmp_path / "lightning_logs/default/000-BatchNorm-0"
    tables: list[list[dict[str, Any]]] = []
    for number, variables in enumerate(([{}], local_ranks())):
        flags = (
            "--ckpt_path=lightning_logs/default/000-BatchNorm-0",
            f"--output={number}.csv",
            *(TWO[:-2] if number else QUIET),
        )
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
