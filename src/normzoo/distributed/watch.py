"""Ranks that watch each other: where one dies or stands still, all end, within a minute and with one message."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from normzoo.distributed.leave import Spawner, leave
from normzoo.errors import InputError

# Seconds between two looks, and how long a process may be seen stopped (by SIGSTOP, a debugger) before the others give
# up. A rank that is stopped itself, as all are by Ctrl-Z, does not look.
LOOK = 0.5
STOPPED = 20.0
# Seconds for a rank's own thread to end by the error that a dead rank causes in it, before the watch ends the process.
GRACE = 3.0

# What torch says where another rank is gone or late.
BROKEN = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|timeout|tcpstore|DistNetwork|DistStore", re.I
)
LATE = re.compile(r"timed out|timeout", re.I)

REMEDY = "The run ends. When the cause is mended, normzoo resume RUN_FOLDER goes on from its last checkpoint."


class Watch(Callback):
    """Looks after the ranks of a run that has several; as a callback it learns when they have found each other.

    A rank of this machine is watched by its process number, one of another machine by the connection to it. Who waits
    for a rank longer than `patience` gives up, and says where that rank stood.

    Args:
        trainer: of this process.
        patience: seconds that a rank waits for another.
    """

    def __init__(self, trainer: Trainer, patience: float) -> None:
        self.trainer = trainer
        self.patience = patience
        self.rank: int = trainer.global_rank
        self.children: list[subprocess.Popen[bytes]] = []
        # Lightning starts the other ranks of a machine as children of the first, and says so by no variable of its own.
        self.parent = os.getppid() if os.environ.get(PARENT) == str(os.getppid()) else None
        self.torchrun = os.getppid() if dist.is_torchelastic_launched() else None
        self.peers: dict[int, int] = {}  # rank -> process, of this machine
        self.lost: set[int] = set()  # processes of this machine that no longer come, and end with this one
        self.stopped: dict[int, float] = {}  # process -> seconds for which it was seen stopped
        self.trouble: str | None = None
        self.leaving = threading.Event()
        self.over = threading.Event()
        self.store: Any = None
        self.main = threading.main_thread().ident
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            own = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
            own.watch = self
            trainer.strategy._launcher = own
        threading.Thread(target=self.run, daemon=True, name="watch").start()
        end_by_sigterm(trainer)

    def __deepcopy__(self, memo: Any) -> "Watch":
        return self  # there is one of a process, whatever copies a module and so its Trainer

    # The ranks find each other.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.peers or not dist.is_initialized():
            return
        # Only now, as some ranks may take minutes until they are here.
        c10d.set_timeout(timedelta(seconds=self.patience))
        self.store = c10d.PrefixStore("watch", c10d._get_default_store())
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (socket.gethostname(), boot(), os.getpid()))
        here = everyone[self.rank][:2]
        self.peers = {r: pid for r, (*host, pid) in enumerate(everyone) if tuple(host) == here and r != self.rank}

    # The thread that looks.

    def run(self) -> None:
        rounds = 0
        while not self.over.wait(LOOK):
            rounds += 1
            found = self.look()
            if not found and rounds % 4 == 0:
                self.ask(lambda: self.store.set(f"stands{self.rank}", self.place()))
            if found and not self.over.is_set():
                self.trouble = found
                if not self.over.wait(GRACE):
                    self.end(found, 1)

    def look(self) -> str | None:
        """What is wrong with a rank of this machine, if anything."""
        for rank, child in self.ranks_of_children():
            code = child.poll()
            if code is not None and not (code == 0 and self.leaving.is_set()):
                return f"rank {rank} (process {child.pid}) {ended(code)}"
        if self.torchrun is not None and os.getppid() != self.torchrun:
            return f"torchrun (process {self.torchrun}), which started rank {self.rank}, has ended"
        known = dict(self.peers)
        if self.parent is not None:
            known[self.rank - self.trainer.local_rank] = self.parent
        children = {child.pid: rank for rank, child in self.ranks_of_children()}
        known.update((rank, pid) for pid, rank in children.items())
        for rank, pid in known.items():
            state = state_of(pid)
            if state == "gone" and pid not in children and not self.leaving.is_set():
                return f"rank {rank} (process {pid}) has ended before the run did; if it could say why, it stands above"
            self.stopped[pid] = self.stopped.get(pid, 0) + LOOK if state == "stopped" else 0
            if self.stopped[pid] >= STOPPED:
                self.lost.add(pid)
                return f"rank {rank} (process {pid}) stood still for {STOPPED:.0f} s, stopped by a signal"
        return None

    def ranks_of_children(self) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
        return ((self.rank + 1 + i, child) for i, child in enumerate(self.children))

    def place(self) -> str:
        """Where the main thread stands: the innermost line of it."""
        frame = sys._current_frames().get(self.main or 0)
        if frame is None:
            return "nowhere"
        begun = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        stage = self.trainer.state.stage
        code, during = frame.f_code, stage.value if stage else "before"
        where = f"{code.co_filename}:{frame.f_lineno}, in {code.co_name}"
        return f"{where} ({during}, {begun} training batches begun)"

    def ask(self, question: Callable[[], Any], seconds: float = 2.0) -> Any:
        """What the common store answers; None where it fails or takes too long: the rank that keeps it may be gone."""
        if self.store is None or (0 in self.peers and state_of(self.peers[0]) == "gone"):
            return None
        answer: list[Any] = [None]

        def run() -> None:
            with contextlib.suppress(Exception):
                answer[0] = question()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        return answer[0]

    def tell(self, what: str) -> None:
        """Leaves a mark that all ranks can see."""
        self.ask(lambda: self.store.set(what, "1"))

    def is_told(self, what: str) -> bool:
        """Whether some rank has left a mark."""
        return bool(self.ask(lambda: self.store.check([what])))

    def place_of(self, rank: int) -> str:
        """Where another rank's main thread stood when it was last seen."""
        if rank in self.peers and state_of(self.peers[rank]) == "stopped":
            return "was stopped by a signal"
        place = self.ask(lambda: self.store.get(f"stands{rank}").decode())
        return f"stands at {place}" if place else "has not said where it stands"

    # The end.

    @property
    def speaks(self) -> bool:
        """Whether it is on this rank to tell: the first of this machine that lives."""
        return all(state_of(pid) == "gone" or rank > self.rank for rank, pid in self.peers.items())

    def explain(self, error: BaseException) -> str | None:
        """Which rank is to blame for an error of this one; "" where another tells; None where it is this one's own."""
        told = f"{type(error).__name__}: {error}"
        if not isinstance(error, RuntimeError | OSError) or not BROKEN.search(told):
            return None
        late = LATE.search(told)
        if late:
            self.tell(f"waited{self.rank}")
        for _ in range(round(GRACE / 0.1)):
            if self.trouble:
                return self.trouble
            time.sleep(0.1)
        ranks = [r for r in range(self.trainer.world_size) if r != self.rank]
        absent = [r for r in ranks if not self.is_told(f"waited{r}")]
        if late and absent:
            if min({*ranks, self.rank} - {*absent}) < self.rank:
                return ""
            self.tell("told")
            self.lost |= {self.peers[r] for r in absent if r in self.peers}
            where = "; ".join(f"rank {r} {self.place_of(r)}" for r in absent)
            say(
                f"rank {self.rank} has waited {self.patience:g} s for the others: {where}. If they only take long "
                f"there, give them time with --patience=SECONDS. {REMEDY}"
            )
            return ""
        return f"rank {self.rank} has lost the connection to another rank, or waited in vain for it ({told[:300]})"

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this rank by its own error, or tells which other rank is to blame."""
        blamed = self.explain(error)
        if isinstance(error, SystemExit):
            self.end(None, error.code if isinstance(error.code, int) else int(error.code is not None))
        if blamed == "":
            self.end(None, 1)
        if blamed is None and (not isinstance(error, InputError) or os.environ.get("NORMZOO_TRACEBACK")):
            sys.stderr.write(f"normzoo: error on rank {self.rank}:\n{''.join(traceback.format_exception(error))}")
            self.end(None, 130 if isinstance(error, KeyboardInterrupt) else 1)
        self.end(blamed or str(error), 1, own=blamed is None)

    def end(self, message: str | None, status: int, own: bool = False) -> NoReturn:
        """Prints the message, if no other rank does, and ends the process and its children at once.

        An exit in order would wait in what is broken: threads of torch hang in it, or abort.
        """
        self.over.set()
        told = not own and self.is_told("told")
        if message and (own or (self.speaks and not told)):
            if not own:
                self.tell("told")
            say(message if own else f"{message}. {REMEDY}")
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        for pid in {*self.lost, *(child.pid for child in self.children if child.poll() is None)}:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(status)

    def leave(self) -> None:
        """Ends in order, with all other ranks."""
        self.leaving.set()
        leave()
        self.over.set()


# Tells a child that its parent is the first rank of its machine.
PARENT = "NORMZOO_PARENT"


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, but for its observer, which kills all ranks when one has failed, itself too, and says nothing."""

    watch: Watch

    def launch(self, function: Any, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            self._call_children_scripts()
            self.watch.children = self.procs
        return super().launch(function, *args, trainer=trainer, **kwargs)


def end_by_sigterm(trainer: Trainer) -> None:
    """Has SIGTERM end a rank at once, for the others to see.

    Lightning would broadcast it amid whatever the ranks are at, and so have them wait for each other in vain. Where it
    has SLURM queue a run again, SIGTERM stays with it.
    """
    signals: Any = trainer._signal_connector
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return
    register = signals.register_signal_handlers

    def registered() -> None:
        register()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signals.register_signal_handlers = registered


def watched(trainer: Trainer, patience: float) -> Watch | None:
    """Begins the watch where a Trainer is one of several ranks.

    Raises:
        InputError: it would spawn or fork the others, of which the process of the command line learns too little: not
            how far they came, nor which error of theirs is the user's.
    """
    launcher: Any = trainer.strategy.launcher
    if type(launcher) in (_MultiProcessingLauncher, Spawner):
        raise InputError(
            f"strategy=ddp_{launcher._start_method}: on the command line each rank is a command of its own; use "
            f"--trainer.strategy=ddp."
        )
    spawns = isinstance(launcher, _MultiProcessingLauncher)  # that of TPUs
    return None if trainer.world_size == 1 or spawns else Watch(trainer, patience)


def say(message: str) -> None:
    """Writes a message as the command line does."""
    sys.stderr.write(f"normzoo: error: {message}\n")


def ended(code: int) -> str:
    """How a process has ended, by its exit status."""
    if code == 0:
        return "has ended before the run did, without an error"
    if code > 0:
        return f"has failed with status {code}; its own message stands above"
    name = signal.Signals(-code).name
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by the signal {name}{why}"


def state_of(pid: int) -> str:
    """Whether a process is "gone", "stopped" or "alive"."""
    try:
        if not sys.platform.startswith("linux"):
            os.kill(pid, 0)
            return "alive"
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError as error:
        return "alive" if isinstance(error, PermissionError) else "gone"
    return {"Z": "gone", "X": "gone", "T": "stopped", "t": "stopped"}.get(letter, "alive")


def boot() -> str:
    """What tells this machine, and in it this space of process numbers, from others of the same name."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return ""
