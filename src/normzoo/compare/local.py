"""Runs each call in a process of its own on this machine."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

CONTEXT = get_context("forkserver") if sys.platform == "linux" else get_context("spawn")


def preload(modules: Sequence[str]) -> None:
    """Has the processes that follow start as copies of one that has imported these modules, on Linux.

    It imports them while the caller does other things: they take most of the time of a short run.
    """
    if sys.platform == "linux":
        CONTEXT.set_forkserver_preload(list(modules))
        CONTEXT.Process(target=int).start()


class ProcessEnded(RuntimeError):
    """A process ended without a result: it was killed, or stopped by a signal."""


class Local(ThreadPoolExecutor):
    """An executor whose calls run in a process each, which is killed if this one ends.

    Args:
        jobs: how many run at once.
        threads: of each on a CPU.
        devices: the GPUs, over which the jobs are shared out; empty for none.
    """

    def __init__(self, jobs: int, threads: int, devices: Sequence[int] = ()) -> None:
        super().__init__(jobs)
        self.threads = threads
        self.processes: set[BaseProcess] = set()
        self.free: SimpleQueue[int | None] = SimpleQueue()
        for job in range(jobs):
            self.free.put(devices[job % len(devices)] if devices else None)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self.call, function, *args, **kwargs)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in a new process, and returns its result.

        Raises:
            ProcessEnded: the process ended before.
        """
        device = self.free.get()
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=child, args=(sender, self.threads, device, function, args))
        try:
            process.start()
            self.processes.add(process)
            sender.close()
            result, error = receiver.recv()
        except EOFError as error:
            raise ProcessEnded("the process was killed") from error
        finally:
            process.join()
            self.processes.discard(process)
            self.free.put(device)
        if error is not None:
            raise error
        return result

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Starts no further call, and signals the processes and those that they started."""
        self.shutdown(wait=False, cancel_futures=True)
        for process in list(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, number)


def child(
    sender: Connection, threads: int, device: int | None, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    """Calls a function in this process, and sends its result or its exception."""
    os.setsid()  # Ctrl-C in a terminal is for the parent, which decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    try:
        sender.send((function(*args), None))
    except Exception as error:
        sender.send((None, error))


def end_with_parent() -> None:
    """Kills this process, and those that it started, once the parent is gone."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
