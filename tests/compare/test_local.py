"""Processes on this machine: results, failures, kills, and what becomes of them without their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alive import is_alive

from normzoo.compare.local import Local, ProcessEnded

pytestmark = pytest.mark.slow

SCRIPT = """
import time
from normzoo.compare.local import Local
from test_local import note_and_sleep
with Local(2, threads=1) as executor:
    [executor.submit(note_and_sleep, {folder!r}, i) for i in range(2)]
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def executor() -> Iterator[Local]:
    with Local(2, threads=3, devices=["0", "1"]) as executor:
        yield executor


def environment() -> tuple[int, str, str]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]


def note_and_sleep(folder: str, number: int) -> None:
    Path(folder, str(number)).write_text(str(os.getpid()))
    time.sleep(60)


def fail() -> None:
    raise ValueError("as it should")


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_call_has_a_process_of_its_own(executor: Local) -> None:
    found = [future.result() for future in [executor.submit(environment) for _ in range(4)]]
    assert len({pid for pid, *_ in found} | {os.getpid()}) == 5
    assert {(threads, device) for _, threads, device in found} == {("3", "0"), ("3", "1")}


def test_an_exception_is_that_of_the_call(executor: Local) -> None:
    with pytest.raises(ValueError, match="as it should"):
        executor.submit(fail).result()


def test_a_killed_process_ends_its_own_call_only(executor: Local) -> None:
    killed, other = executor.submit(kill_itself), executor.submit(environment)
    assert other.result()
    with pytest.raises(ProcessEnded):
        killed.result()
    assert executor.submit(environment).result()


def test_stop_ends_all_processes(tmp_path: Path) -> None:
    executor = Local(2, threads=1)
    futures = [executor.submit(note_and_sleep, str(tmp_path), number) for number in range(5)]
    pids = noted(tmp_path, 2)
    executor.stop()
    assert all(future.cancelled() or isinstance(future.exception(20), ProcessEnded) for future in futures)
    assert len(list(tmp_path.iterdir())) == 2
    wait_until_gone(pids)


def test_stop_ends_a_process_that_is_about_to_start(tmp_path: Path) -> None:
    """It leads no group of its own yet, or has no number."""
    with Local(2, threads=1) as executor:
        futures = [executor.submit(note_and_sleep, str(tmp_path), number) for number in range(2)]
        executor.stop()
        assert all(future.cancelled() or isinstance(future.exception(30), ProcessEnded) for future in futures)


def test_processes_die_with_their_parent(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    script = SCRIPT.format(folder=str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ":".join([here, *sys.path])}
    )
    pids = noted(tmp_path, 2)
    parent.kill()
    parent.wait()
    wait_until_gone(pids)


def noted(folder: Path, count: int) -> list[int]:
    """The processes that have written their numbers into a folder, once there are so many."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        texts = [file.read_text() for file in folder.iterdir()]
        if len(texts) == count and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.05)
    raise AssertionError(f"{len(texts)} of {count} processes have begun")


def wait_until_gone(pids: list[int]) -> None:
    """Waits until no process of these runs, for 20 s at most."""
    end = time.monotonic() + 20
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < end, f"{alive} still run"
        time.sleep(0.05)
