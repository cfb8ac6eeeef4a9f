"""Modules that take the place of others in a network, and what puts those back."""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn


@dataclass(frozen=True)
class Placed:
    """A module that is in the place of another; a call puts the old one back.

    Args:
        net: the network.
        path: of the module in the network.
        old: the module that was there.
        new: the module that took its place.
    """

    net: nn.Module
    path: str
    old: nn.Module
    new: nn.Module

    def is_there(self) -> bool:
        """Whether the new module is still in its place."""
        return dict(self.net.named_modules(remove_duplicate=False)).get(self.path) is self.new

    def __call__(self) -> None:
        """Puts the old module back, in the mode of the new one."""
        if self.old.training != self.new.training:
            self.old.train(self.new.training)
        self.net.set_submodule(self.path, self.old)


def let_norms_run(net: nn.Module, new: Container[nn.Module]) -> Iterator[Callable[[], None]]:
    """Lets transformer layers of torch call their new norms; yields what undoes it.

    In evaluation they compute a LayerNorm themselves, from its weight and bias, unless `activation_relu_or_gelu` is 0;
    around them `TransformerEncoder` packs padded sequences, as only they can take them.
    """
    for module in net.modules():
        for part in module.children() if isinstance(module, nn.TransformerEncoder) else ():
            if any(one in new for one in part.modules()):
                yield from set_to(module, "use_nested_tensor", False)
        if isinstance(module, nn.TransformerEncoderLayer) and any(one in new for one in module.children()):
            yield from set_to(module, "activation_relu_or_gelu", 0)


def set_to(module: nn.Module, name: str, value: object) -> Iterator[Callable[[], None]]:
    """Sets an attribute, and yields what undoes it."""
    yield partial(setattr, module, name, getattr(module, name))
    setattr(module, name, value)
