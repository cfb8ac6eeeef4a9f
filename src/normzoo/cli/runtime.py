"""Settings of the process, made before training starts."""

import ctypes
import os
import sys

# From malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Has the C library keep freed memory for the next tensor instead of returning it to the system.

    By default glibc gets every tensor above 32 MB, and at first above 128 KB, as fresh pages from the system and gives
    them back when the tensor dies. On a CPU a training step then spends much of its time on page faults: the kernel
    clears each page before it hands it out. The price of keeping them is that memory, once used, stays with the
    process. Results do not change.

    Returns:
        Whether it took effect: on Linux with glibc. Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def share_cores() -> None:
    """Has OpenMP's threads wait for each other in turns of some ten microseconds instead of milliseconds.

    By default a thread of GNU OpenMP that is done spins until the others are. On a machine with another busy process it
    so takes the core from the very thread it waits for, and a step of a small network takes twenty times as long. On an
    idle machine nothing changes. Must be called before torch is imported; an environment that sets GOMP_SPINCOUNT or
    OMP_WAIT_POLICY is left alone. Results do not change.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "100000")
