"""Channels of the batch, decorrelated."""

from collections.abc import Callable

import torch
from torch import Tensor

from references._base import Reference, State, learned, mean_of
from references.batch import BATCH_SETTINGS


def whitened(
    x: Tensor,
    state: State,
    training: bool,
    running: str,
    matrix_of: Callable[[Tensor], Tensor],
    averaged: Callable[[Tensor, int], Tensor],
    of_evaluation: Callable[[Tensor], Tensor],
    *,
    num_groups: int | None,
    largest: int,
    momentum: float | None,
) -> Tensor:
    """Channel by channel and pair by pair: the batch's covariance, a matrix from it, and its running average."""
    channels, tracks = x.shape[1], "running_mean" in state
    size = channels // num_groups if num_groups else next(d for d in range(largest, 0, -1) if channels % d == 0)
    rows = x.movedim(1, -1).reshape(-1, channels)
    if tracks and training:
        state["num_batches_tracked"] += 1
        m = 1 / int(state["num_batches_tracked"]) if momentum is None else momentum
    out = []
    for g in range(channels // size):
        group = rows[:, g * size : (g + 1) * size]
        if tracks and not training:
            mean, matrix = state["running_mean"][g * size : (g + 1) * size], of_evaluation(state[running][g])
        else:
            mean = torch.stack([mean_of(column) for column in group.T])
            centred = group - mean
            cov = torch.stack([torch.stack([mean_of(a * b) for b in centred.T]) for a in centred.T])
            matrix = matrix_of(cov)
            if tracks:
                old = state["running_mean"][g * size : (g + 1) * size]
                state["running_mean"][g * size : (g + 1) * size] = (1 - m) * old + m * mean.detach()
                state[running][g] = (1 - m) * state[running][g] + m * averaged(cov, len(group)).detach()
        out.append((group - mean) @ matrix.T)
    y = torch.cat(out, dim=1).reshape(x.movedim(1, -1).shape).movedim(-1, 1)
    return learned(y, state)


def decorrelated_batch_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    num_groups: int | None,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    def inverse_root(cov: Tensor) -> Tensor:
        # Denman and Beavers' iteration, which needs no eigenvectors.
        root = cov + eps * torch.eye(len(cov)).to(cov)
        inverse = torch.eye(len(cov)).to(cov)
        for _ in range(30):
            root, inverse = (root + inverse.inverse()) / 2, (inverse + root.inverse()) / 2
        return inverse

    return whitened(
        x,
        state,
        training,
        "running_cov",
        inverse_root,
        lambda cov, n: cov * n / (n - 1),
        inverse_root,
        num_groups=num_groups,
        largest=min(16, x.shape[1] // 2),
        momentum=momentum,
    )


def iterative_norm(
    x: Tensor,
    state: State,
    training: bool,
    *,
    num_groups: int | None,
    iterations: int,
    eps: float,
    momentum: float | None,
    **unused: object,
) -> Tensor:
    def iterated(cov: Tensor) -> Tensor:
        identity = torch.eye(len(cov)).to(cov)
        s = cov + eps * identity
        p = identity
        for _ in range(iterations):
            p = (3 * p - p @ p @ p @ s / s.trace()) / 2
        return p / s.trace().sqrt()

    return whitened(
        x,
        state,
        training,
        "running_whitening",
        iterated,
        lambda cov, n: iterated(cov),
        lambda running: running,
        num_groups=num_groups,
        largest=64,
        momentum=momentum,
    )


GROUPED = (*BATCH_SETTINGS, {"num_groups": 4}, {"num_groups": 8})

REFERENCES: dict[str, Reference] = {
    "DecorrelatedBatchNorm": Reference(decorrelated_batch_norm, GROUPED),
    "IterativeNorm": Reference(iterative_norm, (*GROUPED, {"iterations": 1, "num_groups": 2}, {"iterations": 7})),
}
