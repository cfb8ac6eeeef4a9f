"""Real processes of the command line, cheaply: each is forked from one that has imported everything and run nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Fork:
    """A process that runs `normzoo ARGUMENTS`; it leads a process group, which its own children belong to.

    Attributes:
        pid: its number, to be killed by.
        out: what it has printed.
        err: what it has printed on standard error.
    """

    def __init__(self, forks: "Forks", pid: int, files: tuple[Path, Path]) -> None:
        self.forks = forks
        self.pid = pid
        self.files = files

    @property
    def out(self) -> str:
        return self.files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.files[1].read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the process and to all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        status = self.forks.ask(status=self.pid)["status"]
        return None if status is None else int(status)

    def wait(self, seconds: float = 120) -> int:
        """The exit status; kills the process, and fails, if it takes longer."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"no end after {seconds} s:\n{self.out[-2000:]}\n{self.err[-2000:]}")
            time.sleep(0.01)
        return status


class Forks:
    """Starts processes in a few hundredths of a second each, where a new Python takes five to import Lightning.

    The server has run no operation of torch, so that no thread is lost in the fork. Its children are as new: their
    standard streams are files, their folder and environment what is asked for.

    Args:
        folder: where the server keeps what its children print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request to the server, and returns its answer."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())  # type: ignore[no-any-return]

    def start(self, *arguments: str, cwd: Path, before: str = "", **environment: str) -> Fork:
        """Starts `normzoo ARGUMENTS`.

        Args:
            arguments: of the command line.
            cwd: the folder it stands in.
            before: Python source that the process runs first, as to break something.
            environment: variables, beside those of this process.
        """
        self.count += 1
        files = (self.folder / f"{self.count}.out", self.folder / f"{self.count}.err")
        answer = self.ask(
            arguments=arguments, cwd=str(cwd), environment=environment, before=before, files=[str(f) for f in files]
        )
        return Fork(self, answer["pid"], files)

    def run(self, *arguments: str, cwd: Path, before: str = "", seconds: float = 120, **environment: str) -> Fork:
        """Starts `normzoo ARGUMENTS` and waits for the end, whose status `poll` then tells."""
        fork = self.start(*arguments, cwd=cwd, before=before, **environment)
        fork.wait(seconds)
        return fork

    def close(self) -> None:
        """Ends the server, and with it whatever still runs."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def child(request: dict[str, Any]) -> None:
    """Becomes `normzoo ARGUMENTS`, and never returns."""
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [nothing, *(os.open(f, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for f in request["files"])]
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    sys.argv = [str(Path(sys.executable).with_name("normzoo")), *request["arguments"]]
    exec(compile(request["before"], "before", "exec"), {"__name__": "before"})
    from normzoo.__main__ import main

    sys.exit(main(request["arguments"]))


def serve() -> None:
    """Answers requests until there are no more."""
    import gc

    import normzoo.cli.fit  # noqa: F401 - all that its children will need

    gc.freeze()  # the collector would copy every page that a child shares with the server

    ended: dict[int, int] = {}
    running: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "arguments" in request:
            pid = os.fork()
            if pid == 0:
                child(request)
            running.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            pid = request["status"]
            if pid in running:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    running.remove(pid)
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"status": ended.get(pid)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve()
