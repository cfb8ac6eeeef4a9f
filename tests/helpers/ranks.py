"""Processes with a gloo group between them, started once and kept for many jobs."""

import multiprocessing
import pickle
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
    """

    def __init__(self, folder: Path, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.workers = [], []
        for rank in range(size):
            here, there = context.Pipe()
            worker = context.Process(target=work, args=(rank, size, str(folder / "rendezvous"), there), daemon=True)
            worker.start()
            there.close()
            self.pipes.append(here)
            self.workers.append(worker)

    def run(self, job: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
        """`job(*arguments)` on all ranks; of every argument a tuple, one for each. Returns what each rank did."""
        for rank, pipe in enumerate(self.pipes):
            # Bytes, by value: what torch registers for pipes would share memory between the processes.
            pipe.send_bytes(pickle.dumps((job, [each[rank] for each in arguments])))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(60), "a rank waits for another: do all run the same collectives?"
            answers.append(pickle.loads(pipe.recv_bytes()))
        for rank, (failed, answer) in enumerate(answers):
            assert not failed, f"rank {rank}:\n{answer}"
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # the worker's next read ends it
        for worker in self.workers:
            worker.join(5)
            if worker.is_alive():
                worker.terminate()


class TwoRanks(Ranks):
    """Two of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2)


def work(rank: int, size: int, rendezvous: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
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
