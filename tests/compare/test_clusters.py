"""Cells on other machines: a Ray cluster of two nodes of which one is killed, and submitit's jobs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from alive import is_alive
from commands import QUIET, normzoo
from left_behind import differences, records, saved

from normzoo.cli.cell import run_cell
from normzoo.cli.plan import plan
from normzoo.compare import Grid
from normzoo.compare.local import Local, preload
from normzoo.compare.on_ray import Ray
from normzoo.compare.on_slurm import submit
from normzoo.compare.settings import cells
from normzoo.errors import InputError
from normzoo.runs.state import State, is_held, state_of

FLAGS = (*QUIET, "--monitors=false", "--trainer.max_epochs=30", "--checkpoint_steps=7")


def made(folder: Path, seeds: int, *flags: str) -> dict[str, Path]:
    """The folders of the cells of a new grid, one for each seed."""
    settings = {"seed": list(range(seeds))}
    grid = Grid(folder, [*FLAGS, *flags], settings, threads=1)
    return {name: folder / name for name in plan(grid, cells(settings))}


def undisturbed(folder: Path, seeds: int) -> dict[str, Path]:
    """The same cells, trained on this machine."""
    found = made(folder, seeds)
    preload(["normzoo.cli.cell"])
    with Local(2, threads=1) as executor:
        wait([executor.submit(run_cell, str(one)) for one in found.values()])
    return found


def assert_equal(found: dict[str, Path], expected: dict[str, Path]) -> None:
    """All cells have ended with the same weights, best weights and curves, test metrics among them, to the bit."""
    for name, run in found.items():
        assert state_of(run) == State.FINISHED, (run / "log.txt").read_text()
        for file in ("last.ckpt", "best.ckpt"):
            assert not differences(saved(run, file), saved(expected[name], file)), name
        curves = records(run)
        assert any(tag.startswith("test/") for tag in curves)
        assert not differences(curves, records(expected[name])), name


def until(holds: Callable[[], Any], seconds: float = 120) -> Any:
    """Waits until something holds, and returns it."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.03)
    return found


def process_of(run: Path) -> int:
    """The process that trains a cell, 0 if it has no checkpoint yet."""
    begun = (run / "checkpoints" / "last.ckpt").is_file() and is_held(run)
    return int((run / ".lock").read_text().split()[1]) if begun else 0


def tree(process: int) -> list[int]:
    """A process and all that descend from it."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    found = [process]
    for one in found:
        found += [child for child, parent in pairs if parent == one]
    return found


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes on other machines import this checkout."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("extra", ["ray", "slurm"])
def test_an_engine_that_is_not_installed_names_its_extra(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[extra], None)
    with pytest.raises(InputError, match=rf"pip install 'normzoo\[{extra}\]'"):
        Ray() if extra == "ray" else submit(tmp_path, print, [()])


# Ray.


@pytest.fixture(scope="module")
def ray() -> Any:
    return pytest.importorskip("ray")


@pytest.mark.slow
def test_a_machine_of_a_ray_cluster_that_dies_costs_no_result(ray: Any, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    expected = undisturbed(tmp_path / "expected", seeds=6)
    found = made(tmp_path / "found", seeds=6)
    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    prompt = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(True, head_node_args={**size, "include_dashboard": False, "_system_config": prompt})
    try:
        node = cluster.add_node(**size)
        [raylet] = node.all_processes["raylet"]
        with Ray(address=cluster.address) as executor:
            calls = [executor.submit(run_cell, str(run)) for run in found.values()]
            until(lambda: sum(call.done() for call in calls) >= 3)

            def victims() -> set[int]:
                return {process_of(run) for run in found.values()} & set(tree(raylet.process.pid))

            until(victims)
            for process in tree(raylet.process.pid):
                os.kill(process, signal.SIGKILL)
            assert [call.exception() for call in calls] == [None] * 6
    finally:
        cluster.shutdown()
    assert any("resuming" in line and "last.ckpt" in line for run in found.values() for line in log(run))
    assert_equal(found, expected)


def log(run: Path) -> list[str]:
    """The lines that a cell printed."""
    return (run / "log.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def on_this_machine(ray: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    folder = tmp_path_factory.mktemp("caller")
    (folder / "my_norms.py").write_text("NAME = 'MyNorm'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
        patch.delenv("RAY_ADDRESS", raising=False)
        with Ray(threads=3) as executor:
            yield executor


@pytest.mark.slow
def test_each_call_has_a_process_of_its_own_in_the_callers_folder(on_this_machine: Ray) -> None:
    asked = [
        "__import__('os').getpid()",
        "__import__('os').getpid()",
        "__import__('my_norms').NAME",
        "__import__('os').environ['OMP_NUM_THREADS']",
        "int('seven')",
    ]
    one, two, name, threads, failed = [on_this_machine.submit(eval, text) for text in asked]
    assert one.result() != two.result()
    assert (name.result(), threads.result()) == ("MyNorm", "3")
    assert type(failed.exception()) is ValueError
    assert str(failed.exception()) == "invalid literal for int() with base 10: 'seven'"


@pytest.mark.slow
def test_a_stopped_call_ends_with_a_checkpoint(on_this_machine: Ray, tmp_path: Path) -> None:
    first, second, third = made(tmp_path / "grid", 3, "--trainer.max_epochs=10000").values()
    calls = [on_this_machine.submit(run_cell, str(run)) for run in (first, second, third)]
    process = until(lambda: process_of(first) or process_of(second))
    on_this_machine.stop()
    wait(calls, timeout=60)
    assert all(call.exception() is not None for call in calls)
    until(lambda: not is_alive(process))
    assert State.INTERRUPTED in {state_of(first), state_of(second)}
    assert state_of(third) == State.NEW
    assert not {"failed", "diverged"} & {file.name for file in tmp_path.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_a_ray_cluster_that_is_not_there_is_refused_at_once(ray: Any, address: str) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=f"cannot use the cluster at {address}: .*--address=HOST:PORT"):
        Ray(address=address)
    assert time.monotonic() - start < 20


# Slurm.

SBATCH = """#!/bin/sh
cp "$1" {folder}/submitted.sh
echo "Submitted batch job 7"
"""


def programs(folder: Path, patch: pytest.MonkeyPatch, sbatch: str) -> None:
    """Puts programs of Slurm on the PATH."""
    for name, text in {"sbatch": sbatch, "srun": "#!/bin/sh\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_slurm_gets_one_array_with_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    programs(tmp_path, monkeypatch, SBATCH.format(folder=tmp_path))
    grid = ("norm=BatchNorm,LayerNorm,NoNorm", f"--out={tmp_path / 'first'}", *FLAGS)
    resources = ("--jobs=2", "--cpus=4", "--gpus=1", "--minutes=90", "--partition=long")
    result = normzoo("compare", *grid, "--on=slurm", *resources, "--slurm=account=vision", "--slurm", "exclusive")
    assert result.status == 0, result.err
    assert "3 cells, 0 have ended, 3 submitted" in result.out
    assert "7_0 to 7_2" in result.out
    assert set(Grid.load(tmp_path / "first").states().values()) == {State.NEW}
    script = (tmp_path / "submitted.sh").read_text().splitlines()
    options = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    assert options >= {
        "array=0-2%2",
        "cpus-per-task=4",
        "gpus-per-node=1",
        "time=90",
        "partition=long",
        "account=vision",
        "exclusive",
        "job-name=first",
    }
    assert "export OMP_NUM_THREADS=4" in script
    assert any(line.startswith("srun") and str(tmp_path / "first" / ".submitit") in line for line in script)


def test_what_slurm_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    programs(tmp_path, monkeypatch, "#!/bin/sh\necho 'sbatch: error: invalid partition: x' >&2\nexit 1\n")
    with pytest.raises(InputError, match="sbatch refuses the jobs: sbatch: error: invalid partition: x"):
        submit(tmp_path, run_cell, [("a",)], partition="x")
    assert "sbatch" not in capfd.readouterr().err  # the message alone, once


def test_a_machine_without_slurm_is_no_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs the programs sbatch and srun.*login node"):
        submit(tmp_path, run_cell, [("a",)])


@pytest.mark.slow
def test_jobs_that_are_requeued_killed_and_submitted_twice_end_the_same(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    expected = undisturbed(tmp_path / "expected", seeds=2)
    found = made(tmp_path / "found", seeds=2)
    calls = [(str(run),) for run in found.values()]
    requeued, killed = found.values()
    first = submit(tmp_path / "found", run_cell, calls, cluster="local")
    os.kill(until(lambda: process_of(killed)), signal.SIGKILL)
    os.kill(until(lambda: process_of(requeued)), signal.SIGUSR2)  # as Slurm does before it ends a job
    second = submit(tmp_path / "found", run_cell, calls, cluster="local")  # while the first one runs
    for job in (*first, *second):
        job.wait()
    for run in found.values():
        assert len([line for line in log(run) if line.startswith("resuming")]) == 2
    assert_equal(found, expected)
