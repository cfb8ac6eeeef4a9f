"""Which parameters an optimizer decays."""

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from normzoo.norms import Norm


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Splits the parameters of a network into those with and those without weight decay.

    The parameters of a `Norm`, and all vectors and scalars (biases, the parameters of other libraries' norms), are not
    decayed: shrinking them does not make a network simpler, and undoes what a norm has just learned.

    >>> [len(group["params"]) for group in parameter_groups(nn.Linear(2, 2))]
    [1, 1]

    Args:
        net: the network; parameters that need no gradient are left out.
    """
    of_norms = {id(p) for m in net.modules() if isinstance(m, Norm) for p in m.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for parameter in net.parameters():
        if parameter.requires_grad:
            (not_decayed if parameter.ndim < 2 or id(parameter) in of_norms else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": not_decayed, "weight_decay": 0.0}]
    return [part for group in groups for part in split_sharded(group) if part["params"]]


def split_sharded(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Splits a group into sharded and whole parameters, which an optimizer cannot update together."""
    kinds = [[p for p in group["params"] if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    return [{**group, "params": kind} for kind in kinds]
