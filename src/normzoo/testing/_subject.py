"""A layer in one layout, as the laws see it: how it is built, what it takes, and what it is compared with."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.norms import Facts, Norm
from normzoo.testing._compare import State, buffers_of

C = 8
LAYOUTS = {"NC": (6, C), "NCL": (4, C, 5), "NCHW": (4, C, 3, 2)}
# Inputs of more values than the plain formula takes, and of no round number of blocks.
LARGE = {"NC": (300, 64), "NCL": (4, C, 601), "NCHW": (8, C, 16, 20)}


@dataclass(frozen=True)
class Subject:
    """A layer class, or a function of `num_features` that builds a layer, in one layout."""

    layer: Any
    layout: str
    name: str

    def __str__(self) -> str:
        return f"{self.name}({self.features})"

    @property
    def declared(self) -> Facts:
        """The facts that the class states."""
        return self.layer.facts

    @property
    def facts(self) -> Facts:
        """What the laws take for true of the layer."""
        return self.declared

    @property
    def declares(self) -> bool:
        """Whether the class states facts at all."""
        return True

    @property
    def of_zoo(self) -> bool:
        """Whether it is a layer of the zoo, or derives its facts from one."""
        return self.declared.family != "own"

    @property
    def is_norm(self) -> bool:
        """Whether it is a class derived from `Norm`, which takes what every norm takes."""
        return isinstance(self.layer, type) and issubclass(self.layer, Norm)

    @property
    def features(self) -> int:
        return C

    @property
    def sizes(self) -> tuple[int, ...]:
        return LAYOUTS[self.layout]

    def width(self, wide: int) -> int:
        """The number of channels of a wide input."""
        return wide

    @property
    def many(self) -> tuple[int, ...]:
        """The sizes of a large input, whose channels may be more."""
        return LARGE[self.layout]

    @property
    def many_samples(self) -> tuple[int, ...]:
        """The sizes of a large input with as many channels as a small one has."""
        return (3000, self.features) if self.layout == "NC" else self.many

    @property
    def on_weights(self) -> bool:
        return self.declared.acts_on == "weight"

    @property
    def meaningful(self) -> bool:
        return self.declared.dense or self.layout != "NC"

    @property
    def settings(self) -> Sequence[Mapping[str, Any]]:
        """The arguments to try, the defaults first."""
        return [{}]

    @property
    def channel_axis(self) -> int:
        return 0 if self.on_weights else 1

    @property
    def pickles(self) -> bool:
        """Whether layers can be pickled, as those can whose class lies in a module."""
        return True

    def new(self, num_features: int = 0, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
        """A layer as its class builds it."""
        return self.layer(num_features or self.features, **settings).to(dtype)

    def build(
        self, settings: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float64, num_features: int = 0
    ) -> Any:
        """A layer in training whose parameters are not at their start, where a wrong one may not show."""
        layer = self.new(num_features, dtype, **(settings or {}))
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64), alpha=0.3)
            for name in self.declared.gates:
                p = layer.get_parameter(name)
                p.copy_(0.1 + 0.8 * torch.rand(p.shape, generator=g, dtype=torch.float64))
            for name in () if self.declared.takes_reference else self.declared.constants:
                b = layer.get_buffer(name)
                b.add_(torch.rand(b.shape, generator=g, dtype=torch.float64))
        return self.ready(layer, dtype)

    def default(self, num_features: int = 0, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
        """A layer as it is built: facts speak of default arguments, and moments of a unit affine."""
        return self.ready(self.new(num_features, dtype, **settings), dtype)

    def ready(self, layer: Any, dtype: torch.dtype) -> Any:
        """With what it needs before laws can hold: a reference batch; the same random numbers in every pass."""
        if self.facts.random:
            layer.register_forward_pre_hook(draw_again)
        if self.declared.takes_reference:
            layer(self.input(99, dtype=dtype, sizes=(7, layer.num_features, *self.sizes[2:])))
        return layer

    def experienced(self, settings: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float64) -> Any:
        """A layer in training whose running statistics are not at their start either."""
        layer = self.build(settings, dtype)
        for seed in (11, 12) if self.facts.stateful else ():
            x = self.input(seed, dtype=dtype).requires_grad_()
            torch.autograd.grad(layer(x).pow(2).sum(), x)  # some statistics are of gradients
        return layer

    def exact(self, layer: Any, x: Tensor) -> tuple[Tensor, State]:
        """The output and the buffers after it in float64, as nearly as they are known; the layer stays as it is."""
        twin = copy.deepcopy(layer).double()
        return twin(x.double()).detach(), buffers_of(twin)

    def input(self, seed: int = 0, *, dtype: torch.dtype = torch.float64, **shape: Any) -> Tensor:
        """Values of other mean and scale in every channel."""
        sizes = self.shape(**shape)
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(sizes, generator=g, dtype=torch.float64)
        c = sizes[self.channel_axis]
        across = [c if axis == self.channel_axis else 1 for axis in range(len(sizes))]
        x = x * (1 + torch.rand(across, generator=g, dtype=torch.float64))
        return (x + 0.5 * torch.randn(across, generator=g, dtype=torch.float64)).to(dtype)

    def samples(self, n: int) -> int:
        """The least number of at least n samples that makes a whole batch."""
        multiple = self.facts.batch_multiple
        return math.ceil(n / multiple) * multiple

    @property
    def groups(self) -> Mapping[str, Any]:
        """Arguments with which the channels of a group are not all channels."""
        return {"num_groups": 2} if "C/G" in self.facts.axes else {}

    def shape(self, *, samples: int | None = None, sizes: tuple[int, ...] | None = None) -> tuple[int, ...]:
        n, c, *positions = sizes or self.sizes
        n = n if samples is None else samples
        return (c, n, *positions) if self.on_weights else (n, c, *positions)


def draw_again(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Before every forward pass of a layer that draws random numbers."""
    torch.manual_seed(0)


def let_draw(layer: nn.Module) -> None:
    """Lets a layer draw other random numbers in every pass again."""
    for key, hook in list(layer._forward_pre_hooks.items()):  # the handle of the hook is lost
        if hook is draw_again:
            del layer._forward_pre_hooks[key]


# Inputs.


def set_axes(subject: Subject) -> set[int]:
    """The dimensions over which the layer's statistics run; those of a group or a window count as all."""
    rank, axes = len(subject.sizes), subject.facts.axes
    if subject.on_weights:
        return {*(range(1, rank) if "s" in axes else ()), *([0] if "N" in axes else ())}
    positions = list(range(2, rank))
    dims = {"N": [0], "C": [1], "C/G": [1], "s": positions, "s/w": positions}
    return {dim for axis in axes for dim in dims.get(axis, ())}


def formats_of(subject: Subject) -> list[torch.memory_format]:
    """The memory formats that inputs of this layout have."""
    images = subject.layout == "NCHW" and not subject.on_weights
    return [torch.contiguous_format, *([torch.channels_last] if images else [])]


def few_and_many(subject: Subject, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Inputs on both sides of the number of values up to which the plain formula runs, in all memory formats."""
    for (samples, *others), memory_format in product((subject.sizes, subject.many), formats_of(subject)):
        x = subject.input(sizes=(subject.samples(samples), *others), dtype=dtype)
        yield x.contiguous(memory_format=memory_format)


def built_with_inputs(subject: Subject) -> Iterator[tuple[Any, Tensor]]:
    """The layer with few values and with more than the plain formula takes; images channels-last, too."""
    for x in few_and_many(subject):
        yield subject.build(num_features=x.shape[subject.channel_axis]), x


def on_activations(subject: Subject) -> bool:
    return not subject.on_weights


def is_stateful(subject: Subject) -> bool:
    return subject.facts.stateful
