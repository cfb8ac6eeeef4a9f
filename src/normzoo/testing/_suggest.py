"""What a layer that states no facts could state: what the laws observe."""

from dataclasses import replace
from typing import Any

import torch

from normzoo.norms import Facts
from normzoo.testing._compare import close
from normzoo.testing._law import OBSERVERS
from normzoo.testing._own import Own
from normzoo.testing.facts import joins, moments_of


def suggested_facts(subjects: list[Own]) -> list[str]:
    """What a class that states no facts could state, as Python that can be pasted."""
    if not subjects or subjects[0].declares or not subjects[0].is_norm:
        return []
    found = [observed_facts(subject) for subject in subjects]
    last = found[-1]
    alike = {name: value for name, value in last.items() if all(other.get(name) == value for other in found)}
    alike |= {"axes": last["axes"]}
    if subjects[0].layout != "NC":
        alike["dense"] = False
    follow = ("zero_mean", "unit_square", "cancels_bias")
    told = {name: value for name, value in alike.items() if name in follow or value != getattr(Facts(), name)}
    if not told:
        return []
    text = ", ".join(f"{name}={value!r}" for name, value in told.items())
    return [f"Say in the class what it does, and every law about it is tried, too:\n       facts = Facts({text})"]


def observed_facts(subject: Own) -> dict[str, Any]:
    """The facts in one layout."""
    found: dict[str, Any] = {name: getattr(subject.facts, name) for name in ("stateful", "constants", "random")}
    found["axes"] = observed_axes(subject)
    for name in ("centres", "scales", "train_differs", "folds"):
        found[name] = OBSERVERS[name](subject)
    # The others follow from these, unless they differ.
    follows = Facts(**found)
    cancels = OBSERVERS["cancels_bias"](subject)
    if cancels != follows.cancels_bias:
        found["cancels_bias"] = cancels
    if not follows.axes:
        return {**found, **{name: False for name in ("zero_mean", "unit_square") if getattr(follows, name)}}
    mean, square = moments_of(replace(subject, stated=follows))
    observed = {
        "zero_mean": close(mean, torch.zeros_like(mean), 1e-6),
        "unit_square": close(square, torch.ones_like(square), 1e-4),
    }
    return {**found, **{name: holds for name, holds in observed.items() if holds != getattr(follows, name)}}


def observed_axes(subject: Own) -> tuple[str, ...]:
    """The axes over which the statistics run; a group or window of channels is written as a group."""
    moves = joins(subject)
    positions = [value for where, value in moves.items() if where.startswith("the last position")]
    axes = {
        "N": moves["another sample"],
        "C": moves["a channel far away"],
        "C/G": moves["the neighbouring channel"] and not moves["a channel far away"],
        "s": bool(positions) and all(positions),
    }
    return tuple(axis for axis, joined in axes.items() if joined)
