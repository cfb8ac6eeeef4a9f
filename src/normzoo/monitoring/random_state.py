"""The state of a process's random number generators, as tensors and plain data."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from normzoo.errors import InputError


def readers(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Generator -> the function that reads its state: those of torch, NumPy and Python, and that of a device.

    Args:
        device: where this process computes.
    """
    found: dict[str, Callable[[], Any]] = {
        "torch": torch.get_rng_state,
        "numpy": numpy_state,
        "python": random.getstate,
    }
    if device.type == "cuda":
        found["cuda"] = lambda: torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["mps"] = torch.mps.get_rng_state
    return found


def numpy_state() -> list[Any]:
    """The state of NumPy's global generator."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is what libraries draw from
    return [str(name), np.asarray(keys).tolist(), *rest]


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all generators."""
    return {name: read() for name, read in readers(device).items()}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets all generators to a state that `random_state` returned.

    Raises:
        InputError: it is not such a state.
    """
    try:
        torch.set_rng_state(state["torch"].cpu())
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002 - as above
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), device)
        elif device.type == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"].cpu())
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"the saved state of the random numbers is damaged ({error}); give another checkpoint or step."
        ) from error


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restores the state of all generators at the end."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - as above
    on_device = {name: read() for name, read in readers(device).items() if name == device.type}
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002 - as above
        random.setstate(before[2])
        if "cuda" in on_device:
            torch.cuda.set_rng_state(on_device["cuda"], device)
        elif "mps" in on_device:
            torch.mps.set_rng_state(on_device["mps"])
