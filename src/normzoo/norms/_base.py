"""The base class of normalization layers, and the facts about them that tests, callbacks and the catalogue read.

Shapes: `N` samples, `C` channels (features), `*` any number of positions, often written `s` (`L`, `H x W`,
`D x H x W`).
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._arguments import NormType, common_of, is_count, keyword_defaults
from normzoo.norms._ops.tensors import is_traced

Axis = Literal["N", "C", "C/G", "C/w", "s", "s/w"]
Family = Literal["batch", "sample", "mixed", "whitening", "weight", "pointwise", "own"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a layer was published."""

    title: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        return f"{self.title} ({self.year}" + (f", arXiv {self.arxiv})" if self.arxiv else ")")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Properties of a layer class with its default arguments; a test checks each of them in both directions.

    Args:
        family: the folder of the zoo, or "own" for a layer outside it.
        formula: the equation, in one line.
        paper: where it was published.
        axes: the axes of `(N, C, *)` that the statistics are taken over: samples "N", channels "C", the channels of one
            group "C/G" or of a sliding window "C/w", positions "s", those of a sliding window "s/w". Empty for a layer
            without statistics. For a layer that acts on a weight `(C, I, *)`, where each output channel is a sample,
            "s" means all axes but the first.
        centres: `f(x + c) = f(x)` for a constant c, in training.
        scales: `f(a x) = f(x)` for a > 0, in training (up to eps).
        zero_mean: the output has mean 0 over the axes at the start of training; None: equal to `centres`.
        unit_square: the output has mean square 1 over the axes at the start of training; None: equal to `scales`.
        cancels_bias: a bias per channel, added just before the layer, changes nothing; None: true if the layer acts
            on activations and subtracts the mean of each channel, that is, `axes` contains no channels.
        stateful: keeps running statistics, which are updated in training and never in evaluation.
        constants: buffers that the layer never updates.
        gates: parameters that are clipped to [0, 1]; a gradient that points out of the interval is blocked.
        takes_reference: normalizes by statistics of the first training batch.
        random: draws random numbers in training.
        batch_multiple: in training the number of samples must be a multiple of this.
        train_differs: evaluation computes something else than training.
        dense: accepts `(N, C)`, without positions.
        syncs: can compute its statistics over all ranks (`sync=True`).
        folds: is affine per channel in evaluation, so it can be folded into the linear layer before it.
        acts_on: the "activation" `(N, C, *)` or the "weight" `(C, I, *)` of the layer before it.
        wants_partner: does not control the scale of activations; networks add a norm of another kind after the layer.
        reads_input: normalizes the input of the linear layer as well as its weight (`WeightTransform.of_input`).
        brings_activation: includes a nonlinearity, which replaces that of the network.
        exceptions: name of a law -> the reason why it does not hold for this layer.
    """

    family: Family = "own"
    formula: str = ""
    paper: Paper | None = None
    axes: tuple[Axis, ...] = ()
    centres: bool = False
    scales: bool = False
    zero_mean: bool | None = None
    unit_square: bool | None = None
    cancels_bias: bool | None = None
    stateful: bool = False
    constants: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    takes_reference: bool = False
    random: bool = False
    batch_multiple: int = 1
    train_differs: bool = False
    dense: bool = True
    syncs: bool = False
    folds: bool = False
    acts_on: Literal["activation", "weight"] = "activation"
    wants_partner: bool = False
    reads_input: bool = False
    brings_activation: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own_mean = self.acts_on == "activation" and self.centres and set(self.axes) <= {"N", "s", "s/w"}
        follow = {"zero_mean": self.centres, "unit_square": self.scales, "cancels_bias": own_mean}
        for name, value in follow.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


class Norm(nn.Module, metaclass=NormType):
    """A normalization layer: `(N, C, *)` in; same shape, dtype and memory format out.

    A subclass defines `normalize`, and an `__init__` whose first argument is `num_features`. Everything else,
    including `facts`, has a default. The `__init__` neither takes nor passes on `device`, `dtype` and `channel_dim`:
    the metaclass handles them.

    Args:
        num_features: number of channels C.
        device: where parameters and buffers are created; None for torch's default device.
        dtype: dtype of the parameters; None for torch's default dtype. Running statistics are float32 at least.
        channel_dim: axis of the channels, any but 0: -1 for (N, L, C) and (N, H, W, C), the layout of transformers. A
            layer on a weight has `dim` instead: the axis of its output channels, 0.

    Raises:
        InputError: `num_features` is not a positive integer; an input without C channels, without floating dtype, or
            without positions where the layer needs them.
    """

    facts: ClassVar[Facts] = Facts()
    channel_dim: int = 1
    num_features: int
    built_with: "tuple[type[Norm], tuple[Any, ...], dict[str, Any]]"

    def __init__(self, num_features: int) -> None:
        nn.Module.__init__(self)  # not that of the torch layer that a subclass may also derive from
        name = type(self).__name__
        if not is_count(num_features):
            raise InputError(
                f"{name}(num_features={num_features!r}): num_features must be an integer of at least 1; "
                f"give the number of channels of the layer's input, for example {name}(64)."
            )
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        if not is_traced():
            self.check(x)
        given, wanted = self.axes_of_channels()
        if given == wanted:
            return self.normalize(x)
        return self.normalize(x.movedim(given, wanted)).movedim(wanted, given)

    def axes_of_channels(self) -> tuple[int, int]:
        """The axis of the channels in an input, and the one where `normalize` takes them."""
        return self.channel_dim, 1

    def normalize(self, x: Tensor) -> Tensor:
        """Computes the output for an input (N, C, *) that has passed `check`."""
        raise NotImplementedError(f"{type(self).__name__} must define normalize(self, x).")

    def check(self, x: Tensor) -> None:
        """Raises `InputError` if the layer cannot take x."""
        name, shape, dim = type(self).__name__, tuple(x.shape), self.channel_dim
        if not x.is_floating_point():
            raise InputError(f"{name} got {x.dtype}; it normalizes floating point: convert the input with .float().")
        channels = shape[dim] if -len(shape) < dim < len(shape) else None
        if len(shape) < 2 or channels != self.num_features:
            raise InputError(f"{name}({self.num_features}) got an input of shape {shape}; {self.layout_advice(shape)}.")
        if 0 in shape[1:]:
            raise InputError(
                f"{name} got an input of shape {shape}, which has no positions; use larger images or fewer strides."
            )
        if len(shape) == 2 and not self.facts.dense:
            raise InputError(
                f"{name} got an input of shape {shape}; its statistics run over the positions of each channel, and "
                f"(N, C) has none: use it behind a convolution, or take LayerNorm, RMSNorm or BatchNorm here."
            )

    def layout_advice(self, shape: tuple[int, ...]) -> str:
        """What to do about an input whose channels are not where the layer expects them."""
        name, c, dim = type(self).__name__, self.num_features, self.channel_dim
        takes = f"it takes (N, {c}, *), channels second" if dim == 1 else f"it takes {c} channels at axis {dim}"
        if len(shape) < 2:
            return f"{takes}: give it an axis of samples, by x.unsqueeze(0)"
        if dim != -1 and len(shape) > 2 and shape[-1] == c:
            return f"{takes}: for channels last, build it as {name}({c}, channel_dim=-1)"
        if dim != 1 and shape[1] == c:
            return f"{takes}: for channels second, build it without channel_dim"
        if not -len(shape) < dim < len(shape):
            return f"{takes}: build it with another channel_dim"
        layout = "" if dim == 1 else f", channel_dim={dim}"
        return f"{takes}: build it as {name}({shape[dim]}{layout}), or name the axis of the channels by channel_dim"

    def drop_activation(self) -> None:
        """Removes the activation that the layer includes, for a place without one, such as before a residual sum."""

    def add_affine(self, *, weight: bool = True, bias: bool = True) -> None:
        """Registers `weight` (ones) and `bias` (zeros), one value per channel; None for those that are off."""
        self.weight = nn.Parameter(torch.ones(self.num_features)) if weight else None
        self.bias = nn.Parameter(torch.zeros(self.num_features)) if bias else None

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As in `nn.Module`, in float32 at least: with fewer bits, small updates of an average are lost."""
        if tensor is not None and tensor.is_floating_point():
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        super().register_buffer(name, tensor, persistent)

    def reset_parameters(self) -> None:
        """Sets parameters and buffers to their initial values, for example after `to_empty`."""
        self.reset([*self.named_parameters(), *self.named_buffers()])

    def reset_running_stats(self) -> None:
        """Sets running statistics to their initial values."""
        self.reset([(name, b) for name, b in self.named_buffers() if name not in self.facts.constants])

    @torch.no_grad()
    def reset(self, tensors: list[tuple[str, Tensor]]) -> None:
        """Copies the named parameters and buffers of a new layer with the same arguments, where it has them."""
        cls, args, kwargs = self.built_with  # the class may have changed since, by FSDP or a parametrization
        with nullcontext() if not tensors else torch.device(tensors[0][1].device):
            new = cls(*args, **kwargs)
        values = {**dict(new.named_parameters()), **dict(new.named_buffers())}
        for name, tensor in tensors:
            if name in values:
                tensor.copy_(like(values[name], tensor))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Norm":
        # nn.Module has no public method for `.to()`. Running statistics stay float32 under .half() and .bfloat16():
        # 8 bits cannot represent a small update of an average.
        before = {name: b for name, b in self.named_buffers(recurse=False) if b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = getattr(self, name)
            if torch.finfo(new.dtype).bits < 32:
                setattr(self, name, old.to(new.device, torch.promote_types(new.dtype, torch.float32)))
        return self

    def extra_repr(self) -> str:
        settings = {}
        for name, default in keyword_defaults(type(self)).items():
            value = getattr(self, name, default)
            if not isinstance(value, Tensor) and (value is not None or default is not None):
                settings[name] = False if default is True and value is None else value  # bias=False is no bias
        common = {p.name: (getattr(self, p.name, p.default), p.default) for p in common_of(type(self))}
        settings |= {name: value for name, (value, default) in common.items() if value != default}
        return ", ".join([str(self.num_features), *(f"{name}={value}" for name, value in settings.items())])


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """The value, sharded over ranks as the tensor is."""
    if type(tensor.data) is Tensor:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import

    if not isinstance(tensor, DTensor):
        return value
    value = value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
