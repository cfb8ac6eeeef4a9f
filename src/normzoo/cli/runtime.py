"""Settings of the process, made before training starts."""

import ctypes
import os
import sys

from normzoo.errors import InputError

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Makes the C library keep freed memory for the next tensor instead of returning it to the system.

    By default glibc gets every tensor above 32 MB, and at first above 128 KB, as fresh pages from the system and gives
    them back when the tensor dies. On a CPU a training step then spends much of its time on page faults: the kernel
    clears each page before it hands it out. The price of keeping them is that memory, once used, stays with the
    process. Results do not change.

    Returns:
        Whether it took effect, which is so on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def share_cores() -> None:
    """Makes OpenMP's threads spin for some ten microseconds instead of milliseconds while they wait for each other.

    By default a thread of GNU OpenMP that is done spins until the others are. If another process is busy, it takes the
    core from the very thread it waits for, and a step of a small network takes twenty times as long. On an idle machine
    nothing changes. Call it before torch is imported; GOMP_SPINCOUNT and OMP_WAIT_POLICY in the environment win.
    Results do not change.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")


def require_ranks() -> None:
    """Raises `InputError` if the environment has a rank that is no number, or one left over without its world."""
    for name in RANKS:
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            raise InputError(
                f"{name}={value!r} in the environment: expected the rank of this process, 0 or more; unset it."
            )
        if name in ("RANK", "LOCAL_RANK") and int(value or 0) and not {"WORLD_SIZE", "MASTER_PORT"} & set(os.environ):
            raise InputError(f"{name}={value} in the environment, without WORLD_SIZE and MASTER_PORT: unset {name}.")
