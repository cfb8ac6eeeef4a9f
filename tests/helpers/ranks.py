"""Processes with a gloo group between them, started once and used by many tests."""

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """Runs a function on several ranks at once.

    `spawn`, as a fork of a process that has run torch hangs; one pool for all tests, as a start takes seconds.

    Args:
        folder: where the ranks find each other.
        size: the number of ranks.
        seconds: how long a job may take. After that the pool is replaced by a new one, as the answers of the old one
            would come when another test waits for its own.
    """

    def __init__(self, folder: Path, size: int, seconds: float = 60) -> None:
        self.folder, self.size, self.seconds = folder, size, seconds
        self.starts = 0
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.workers = [], []
        for rank in range(self.size):
            here, there = context.Pipe()
            rendezvous = str(self.folder / f"rendezvous{self.starts}")
            worker = context.Process(target=work, args=(rank, self.size, rendezvous, there), daemon=True)
            worker.start()
            there.close()
            self.pipes.append(here)
            self.workers.append(worker)
        self.starts += 1
        for pipe in self.pipes:
            pipe.recv_bytes()  # imports do not count as time of the first job

    def run(self, job: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
        """`job(*arguments)` on all ranks; of every argument a tuple, one for each. Returns the result of each rank.

        Raises:
            AssertionError: a rank has raised an error, or has not answered in time.
        """
        for rank, pipe in enumerate(self.pipes):
            # Bytes, by value: what torch registers for pipes would share memory between the processes.
            pipe.send_bytes(pickle.dumps((job, [each[rank] for each in arguments])))
        deadline = time.monotonic() + self.seconds
        answers: list[tuple[bool, Any]] = []
        late = False
        for pipe in self.pipes:
            if pipe.poll(max(0.0, deadline - time.monotonic())):
                answers.append(pickle.loads(pipe.recv_bytes()))
            else:
                late = True
                answers.append((True, "no answer in time: do all ranks run the same collectives?"))
        if late:
            self.close(0)
            self.start()
        failures = [f"rank {rank}:\n{answer}" for rank, (failed, answer) in enumerate(answers) if failed]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def close(self, seconds: float = 5) -> None:
        """Ends the ranks, after so many seconds by force."""
        for pipe in self.pipes:
            pipe.close()  # the worker's next read ends it
        for worker in self.workers:
            worker.join(seconds)
            worker.kill()
            worker.join()


class TwoRanks(Ranks):
    """Two of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2)


def work(rank: int, size: int, rendezvous: str, pipe: Connection) -> None:
    """Runs jobs until the pipe is closed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    pipe.send_bytes(b"ready")
    while True:
        try:
            job, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            break
        try:
            answer = (False, job(*arguments))
        except Exception:
            answer = (True, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
