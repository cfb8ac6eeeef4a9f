"""A layer of one's own as a subject of the laws: what its facts do not say is observed."""

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normzoo.norms import Facts
from normzoo.testing._compare import close
from normzoo.testing._subject import Subject


@dataclass(frozen=True)
class Own(Subject):
    """A layer of one's own in one layout."""

    layer: Callable[..., nn.Module]
    num_features: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    stated: Facts | None = None

    def __str__(self) -> str:
        named = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({self.features}{named})"

    @property
    def declared(self) -> Facts:
        facts: Facts = getattr(getattr(self.layer, "func", self.layer), "facts", Facts())
        return self.stated or facts

    @property
    def declares(self) -> bool:
        """Whether a class states facts besides exceptions; those of a function may be of other arguments."""
        return isinstance(self.layer, type) and self.declared != Facts(exceptions=self.declared.exceptions)

    @cached_property
    def facts(self) -> Facts:
        """As declared; or what is seen in two passes, and no more."""
        if self.declares:
            return self.declared
        torch.manual_seed(0)
        layer, x = self.layer(self.features), self.input(dtype=torch.float32)
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        twin = copy.deepcopy(layer)
        y, again = layer(x), twin(x)
        random = isinstance(y, Tensor) and not close(y, again)
        constants = tuple(n for n, b in layer.named_buffers() if torch.equal(b, before[n]))
        stateful = len(constants) < len(before)
        return Facts(stateful=stateful, constants=constants, random=random, exceptions=self.declared.exceptions)

    @property
    def features(self) -> int:
        return self.num_features

    @property
    def sizes(self) -> tuple[int, ...]:
        n, _, *positions = super().sizes
        return (n, self.features, *positions)

    def width(self, wide: int) -> int:
        return self.features

    @property
    def many(self) -> tuple[int, ...]:
        n, _, *positions = super().many
        return (3000, self.features) if self.layout == "NC" else (n, self.features, *positions)

    @property
    def groups(self) -> Mapping[str, Any]:
        """As in the zoo, if the layer takes a number of groups."""
        return super().groups if "num_groups" in inspect.signature(self.layer).parameters else {}

    @property
    def pickles(self) -> bool:
        """A class that is no name of its module does not, and need not."""
        known = vars(sys.modules.get(self.layer.__module__, sys))
        return known.get(getattr(self.layer, "__qualname__", "")) is self.layer

    @cached_property
    def rounds(self) -> bool:
        """Whether the layer computes in float32, at least in part, what it gets in float64."""
        layer, x = self.layer(self.features).to(torch.float64), self.input()
        torch.manual_seed(0)
        y = copy.deepcopy(layer)(x)
        torch.manual_seed(0)
        with WideFloats():
            wide = layer(x)
        return isinstance(y, Tensor) and not torch.equal(y, wide)

    def new(self, num_features: int = 0, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
        layer = super().new(num_features, dtype, **settings)
        if self.rounds:
            layer.register_forward_pre_hook(widen)
            layer.register_forward_hook(narrow, always_call=True)
        return layer


class WideFloats(TorchFunctionMode):
    """Makes float64 of every conversion to float32, so that derivatives can be compared with difference quotients."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        wide = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*(torch.float64 if value is torch.float32 else value for value in args), **wide)


OPEN: list[ExitStack] = []


def widen(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Before a forward pass of float64."""
    if inputs[0].dtype == torch.float64:
        OPEN.append(ExitStack())
        OPEN[-1].enter_context(WideFloats())


def narrow(layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
    """After it."""
    if inputs[0].dtype == torch.float64:
        OPEN.pop().close()
