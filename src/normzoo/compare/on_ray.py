"""Cells on the machines of a Ray cluster, or on this one."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from normzoo.errors import InputError

RETRIES = 20
"""How many machines may die under one function, which resumes on another."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` uploads the working directory to each machine
}


class Ray(Executor):
    """Runs each function in a process of its own, on a machine of a Ray cluster that has room for it.

    If the machine dies, the function runs again on another: it must be one that resumes. All machines need the same
    Python packages, and a file system that they share with the caller, under the same path.

    Args:
        cpus: that each function occupies.
        gpus: the same; a fraction lets several functions share one.
        threads: of each process, as OMP_NUM_THREADS.
        address: of the cluster, `HOST:PORT`, `ray://HOST:10001`, or `auto` for the one on this machine; by default that
            of RAY_ADDRESS, else a cluster of this machine alone, which ends with this process.

    Raises:
        InputError: Ray is not installed; there is no cluster at the address; no machine is large enough.
    """

    def __init__(self, cpus: float = 1, gpus: float = 0, threads: int = 1, address: str | None = None) -> None:
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        try:
            import ray
        except ImportError as error:
            raise InputError("--on=ray needs Ray: pip install 'normzoo[ray]'.") from error

        self.ray = ray
        self.references: list[Any] = []
        address = address or os.environ.get("RAY_ADDRESS")
        self.connect(address, {"OMP_NUM_THREADS": str(threads), **python_path()})
        if not address:
            self.require(CPU=cpus, GPU=gpus)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": RETRIES}
        self.run = ray.remote(**options)(call)

    def connect(self, address: str | None, environment: dict[str, str]) -> None:
        """Connects to a cluster, or starts one."""
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        try:
            if address:
                knock(address)
            self.ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": environment},
                **({} if address else own),
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"--on=ray cannot use the cluster at {address or 'this machine'}: {reason}. --address=HOST:PORT is for "
                f"a machine of the cluster, --address=ray://HOST:10001 for any other; without, the cells run here."
            ) from error

    def require(self, **resources: float) -> None:
        """Raises `InputError` if this machine has too few CPUs or GPUs: the functions would wait forever."""
        there_are = self.ray.cluster_resources()
        for name, needed in resources.items():
            if needed > (number := there_are.get(name, 0)):
                self.ray.shutdown()
                raise InputError(
                    f"--{name.lower()}s={needed:g}: a cell needs more {name}s than this machine has, {number:g}."
                )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Runs `fn(*args, **kwargs)` once a machine has room."""
        reference = self.run.remote(os.getcwd(), fn, args, kwargs)
        self.references.append(reference)
        future: Future[Any] = Future()
        reference.future().add_done_callback(lambda done: copy(done, future))
        return future

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Starts no further call, and interrupts those that run; SIGKILL kills them."""
        for reference in self.references:
            self.ray.cancel(reference, force=number == signal.SIGKILL)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for the calls, or kills them if `cancel_futures`, and disconnects."""
        if cancel_futures:
            self.stop(signal.SIGKILL)
        if wait and self.references:
            self.ray.wait(self.references, num_returns=len(self.references))
        self.ray.shutdown()


def copy(done: "Future[Any]", future: "Future[Any]") -> None:
    """Passes on the result of a call, or its exception as the call raised it."""
    if (error := done.exception()) is None:
        future.set_result(done.result())
    else:
        future.set_exception(getattr(error, "cause", None) or error)


def knock(address: str) -> None:
    """Raises `OSError` if nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def python_path() -> dict[str, str]:
    """The caller's PYTHONPATH, with absolute paths."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}


def call(folder: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a function in the working directory of the caller, whose modules it can import.

    Ray cancels a call by SIGINT. The function gets SIGTERM, on which a run writes a checkpoint and exits; then the call
    has been cancelled. After any other exit, as where a machine shuts down, Ray calls again elsewhere.
    """
    cancelled = []

    def cancel(*signal_and_frame: Any) -> None:
        cancelled.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, cancel)
    os.chdir(folder)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return function(*args, **kwargs)
    except SystemExit as end:
        if cancelled:
            raise KeyboardInterrupt from end
        raise
