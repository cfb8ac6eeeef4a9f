"""Layers that keep their running statistics while a network trains."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Self

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers, is_norm, unwrapped
from normzoo.norms._ops.running import RunningStatistics
from normzoo.surgery._norms import inside
from normzoo.surgery.report import Report, counted


def freeze(net: nn.Module, where: Layers = "*", *, parameters: bool = False) -> Report:
    """Fixes the running statistics of a network's normalization layers: they normalize by them, in training too.

    It persists through `.train()`, copies and pickles, and changes no key of the state_dict. A layer of this package is
    frozen by its own `freeze()`; one of another library stays in evaluation mode from now on.

    Args:
        net: the network.
        where: which layers: patterns of module names such as "backbone.*"; of a module with children, all those inside.
        parameters: stop training the weight and the bias of all normalization layers there, too.

    Returns:
        One row per layer.

    Raises:
        InputError: no layer there has anything to freeze; or `parameters` for a network that is already wrapped in
            DistributedDataParallel, which waits for their gradients.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> print(freeze(net))
    froze 1 layer
      layer  class        frozen
      1      BatchNorm2d  running statistics
    >>> net.train()[1].training
    False
    """
    if parameters and any(isinstance(module, DistributedDataParallel) for module in net.modules()):
        raise InputError(
            "freeze(parameters=True): the network is wrapped in DistributedDataParallel, which would wait for the "
            "gradients of frozen parameters: call freeze before it is wrapped."
        )
    report = Report(title="", rows=[], steps=[])
    rows = []
    for layer, names in with_something_to_freeze(net, where, parameters=parameters).items():
        frozen = ["running statistics"] if keeps_statistics(layer) else []
        kind = type(layer).__name__
        if frozen and not getattr(layer, "frozen", False):
            report.steps.append(fix_statistics(layer))
        for key, parameter in layer.named_parameters() if parameters else ():
            if parameter.requires_grad:
                report.steps.append(partial(setattr, parameter, "requires_grad", True))
                parameter.requires_grad_(False)
            frozen.append(key)
        rows.append({"layer": ", ".join(names), "class": kind, "frozen": ", ".join(frozen)})
    report.title, report.rows = f"froze {counted(rows, 'layer')}", rows
    return report


def with_something_to_freeze(net: nn.Module, where: Layers, *, parameters: bool) -> Mapping[nn.Module, list[str]]:
    """The layers that have running statistics or, if wanted, parameters, with their names.

    Raises:
        InputError: there are none.
    """
    found: dict[nn.Module, list[str]] = {}
    for name, layer in inside(unwrapped(net), where).items():
        if keeps_statistics(layer) or (parameters and is_norm(layer) and any(True for _ in layer.parameters())):
            found.setdefault(layer, []).append(name)
    if not found:
        raise InputError(
            f"freeze(where={where!r}): no layer there keeps running statistics"
            + (
                " or has parameters: there is nothing to freeze."
                if parameters
                else "; parameters=True freezes weights."
            )
        )
    return found


def keeps_statistics(layer: nn.Module) -> bool:
    """Whether a layer updates running statistics in training."""
    if isinstance(layer, RunningStatistics):
        return layer.num_batches_tracked is not None
    running = any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
    return running and is_norm(layer) and hasattr(layer, "momentum")  # a FrozenBatchNorm2d has none


def fix_statistics(layer: nn.Module) -> Any:
    """Fixes the running statistics of a layer that is not frozen; returns what undoes it."""
    if isinstance(layer, RunningStatistics):
        layer.freeze()
        return partial(layer.freeze, False)
    kind, training = type(layer), layer.training
    layer.__class__ = in_evaluation(kind)  # type: ignore[arg-type] # a class is hashable
    layer.training = False
    return partial(set_class, layer, kind, training)


def set_class(layer: nn.Module, kind: type[nn.Module], training: bool) -> None:
    """Sets the class and the mode of a layer."""
    layer.__class__, layer.training = kind, training


@cache
def in_evaluation(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of layers that are those of another class in evaluation mode, and that `.train()` leaves there."""

    class Frozen(kind):  # type: ignore[valid-type, misc] # the base is a variable
        frozen = True  # as a frozen layer of this package has it

        def train(self, mode: bool = True) -> Self:
            super().train(mode)  # a dropout inside has the network's mode
            self.training = False
            return self

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return new_in_evaluation, (kind,), self.__dict__.copy()  # a pickle names the original class

    Frozen.__name__ = Frozen.__qualname__ = f"Frozen{kind.__name__}"
    return Frozen


def new_in_evaluation(kind: type[nn.Module]) -> nn.Module:
    """An empty layer that stays in evaluation mode, for a pickle to fill."""
    new = in_evaluation(kind)  # type: ignore[arg-type] # a class is hashable
    return new.__new__(new)
