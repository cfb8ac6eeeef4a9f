"""Runs each call in a process of its own on this machine."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver, get_context, parent_process
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
        forkserver.ensure_running()


class ProcessEnded(RuntimeError):
    """A process ended without a result: it was killed, or stopped by a signal."""


class Local(ThreadPoolExecutor):
    """An executor whose calls run in a process each, which is killed if this one ends.

    Args:
        jobs: how many run at once.
        threads: of each on a CPU.
        devices: the GPUs, as in CUDA_VISIBLE_DEVICES, over which the jobs are shared out; empty for none.
    """

    def __init__(self, jobs: int, threads: int, devices: Sequence[str] = ()) -> None:
        super().__init__(jobs)
        self.threads = threads
        self.processes: set[BaseProcess] = set()
        self.is_stopped = False
        self.lock = threading.Lock()
        self.free: SimpleQueue[str | None] = SimpleQueue()
        for job in range(jobs):
            self.free.put(devices[job % len(devices)] if devices else None)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self.call, function, *args, **kwargs)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in a new process, and returns its result.

        Raises:
            ProcessEnded: the process ended before, or was never started.
        """
        device = self.free.get()
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=child, args=(sender, self.threads, device, function, args))
        try:
            self.start(process)
            sender.close()
            result, error = receiver.recv()
        except EOFError as error:
            raise ProcessEnded("the process was killed") from error
        finally:
            if process in self.processes:
                process.join()
                self.processes.remove(process)
            self.free.put(device)
        if error is not None:
            raise error
        return result

    def start(self, process: BaseProcess) -> None:
        """Starts a process, unless `stop` came first: it signals all that have been started."""
        with self.lock:
            if self.is_stopped:
                raise ProcessEnded("stopped before it began")
            process.start()
            self.processes.add(process)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Starts no further call, and signals the processes and those that they started."""
        self.shutdown(wait=False, cancel_futures=True)
        with self.lock:
            self.is_stopped = True
            processes = [process.pid or 0 for process in self.processes]
        for pid in processes:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # it leads no group yet, or has ended
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def child(
    sender: Connection, threads: int, device: str | None, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    """Calls a function in this process, and sends its result or its exception."""
    os.setsid()  # Ctrl-C in a terminal is for the parent, which decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
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
