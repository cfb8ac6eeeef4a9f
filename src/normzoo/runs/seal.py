"""A checksum over what a checkpoint holds, which goes into it: bytes that moved from one tensor to another show."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SEALED = ("state_dict", "optimizer_states", "lr_schedulers", "loops")


def seal(checkpoint: dict[str, Any]) -> None:
    """Notes the checksum of a checkpoint in it, under `normzoo.digest`."""
    checkpoint.setdefault("normzoo", {})["digest"] = digest(checkpoint)


def digest(checkpoint: Mapping[str, Any]) -> str:
    """SHA-256 over the weights, the state of optimizers and schedules, and the place in the run, as hexadecimals."""
    sha = hashlib.sha256()
    for part in SEALED:
        add(sha, part, checkpoint.get(part))
    return sha.hexdigest()


def add(sha: Any, key: str, value: Any) -> None:
    """Adds a value, with its key, its kind and all within it."""
    sha.update(f"{key}:{type(value).__name__}".encode())
    if isinstance(value, Mapping):
        for name, inner in value.items():
            add(sha, repr(name), inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            add(sha, str(place), inner)
    elif isinstance(value, Tensor):
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if value.layout == torch.strided and not value.is_quantized and value.numel() and value.device.type != "meta":
            value = value.detach().resolve_conj().resolve_neg()
            real = torch.view_as_real(value) if value.is_complex() else value
            flat = real.cpu().reshape(-1)
            # A single element counts as contiguous whatever its stride, but cannot be seen as bytes then.
            flat = flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)
            sha.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, bool | int | float | complex | str | bytes) or value is None:
        sha.update(repr(value).encode())
