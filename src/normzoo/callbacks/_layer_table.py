"""One training step, layer by layer: what each layer takes and returns, and the first that is not finite."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.monitoring.layers import named_layers
from normzoo.monitoring.probe import Probe, Visit, first_tensor, tensors
from normzoo.monitoring.replica import Replica


@dataclass(frozen=True)
class Numbers:
    """The range of a tensor.

    Args:
        shape: its sizes.
        low: the smallest finite value; None if there is none.
        high: the largest finite value.
        nan: the number of NaN.
        infinite: the number of infinite values.
        time: its place in the order in which tensors were read.
    """

    shape: tuple[int, ...]
    low: float | None
    high: float | None
    nan: int
    infinite: int
    time: int = 0

    @classmethod
    def of(cls, x: Tensor, time: int = 0) -> "Numbers":
        x = local(x.detach())
        finite = x[x.isfinite()]
        has_range = finite.numel() > 0 and not x.is_complex()
        low, high = (finite.min().item(), finite.max().item()) if has_range else (None, None)
        return cls(tuple(x.shape), low, high, int(x.isnan().sum()), int(x.isinf().sum()), time)

    @property
    def bad(self) -> int:
        """The number of values that are not finite."""
        return self.nan + self.infinite

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape)) or "one value"
        finite = "no finite value" if self.low is None else f"within [{self.low:.4g}, {self.high:.4g}]"
        kinds = [f"{n:,} {kind}" for n, kind in ((self.nan, "nan"), (self.infinite, "infinite")) if n]
        return f"{size}, {finite}{', ' if kinds else ''}{' and '.join(kinds)}"

    def brief(self) -> str:
        """A cell of the table."""
        if self.low is None:
            return "nothing finite"
        share = 100 * self.bad / max(math.prod(self.shape), 1)
        return f"{self.low:.3g} .. {self.high:.3g}" + (f", {share:.3g} % bad" if self.bad else "")


def local(x: Tensor) -> Tensor:
    """The values of a tensor that this rank holds, as a plain tensor: also of a sparse or a sharded one."""
    if hasattr(x, "to_local"):
        x = x.to_local()
    return x.coalesce().values() if x.is_sparse else x


@dataclass
class Findings:
    """The result of looking at a step.

    Args:
        loss: what training_step returned; None if it returned nothing.
        visits: the passes through the layers, in the order of execution.
        offender: the name of the first layer that is not finite, "batch" or "loss"; empty if there is none.
        summary: the same in a sentence.
    """

    loss: float | None = None
    visits: Sequence[Visit] = ()
    offender: str = ""
    summary: str = ""

    def table(self) -> str:
        """One line per layer, in the order of execution; `>` marks the offender."""
        lines: list[tuple[str, ...]] = [("layer", "", "input", "output", "gradient of the output")]
        for visit in self.visits:
            if is_leaf(visit.module) or visit.name == self.offender:
                mark = ">" if visit.name == self.offender else ""
                cells = ("-" if n is None else n.brief() for n in (visit.input, visit.output, visit.gradient))
                lines.append((mark + visit.name, type(visit.module).__name__, *cells))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def inspect_step(replica: Replica, batch: Any, batch_idx: int, factor: float = 1.0) -> Findings:
    """Runs a step on a copy, forward and backward, and finds the first layer that is not finite.

    Args:
        replica: the copy; the original has the weights, buffers and random numbers from before the step.
        batch: what training_step takes.
        batch_idx: its number.
        factor: what the loss is multiplied by before the backward pass.
    """
    original, module, weights = replica.original, replica.refresh().module, replica.weights()
    gradients: dict[str, Numbers] = {}
    with watch(module) as (visits, input_gradients):
        loss = replica.loss(batch, batch_idx, weights)
        if loss is not None and weights:
            with replica.backward(weights):
                found = torch.autograd.grad(loss * factor, list(weights.values()), allow_unused=True)
            gradients = {name: Numbers.of(g) for name, g in zip(weights, found, strict=True) if g is not None}
    findings = Findings(None if loss is None else float(loss.detach()), visits)
    findings.offender, findings.summary = (
        blame_weights(original)
        or blame_batch(batch)
        or blame_forward(visits, findings.loss)
        or blame_backward(visits, input_gradients, gradients)
        or ("", "Repeated on a copy, the step is finite.")
    )
    return findings


@contextmanager
def watch(module: nn.Module) -> Iterator[tuple[list[Visit], dict[int, Numbers]]]:
    """Reads all layers: yields the passes through them, and place of a pass -> the gradient of its layer's input.

    The gradient of an input is the part that comes through this layer.
    """
    clock = count()
    layers = {name: layer for name, layer in named_layers(module) if name}
    input_gradients: dict[int, Numbers] = {}

    def read(layer: nn.Module, x: Tensor) -> Numbers:
        return Numbers.of(x, next(clock))

    def split_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = first_tensor(args)
        if x is None or not x.requires_grad or x.layout != torch.strided:
            return None
        place, view = len(probe.visits) - 1, x.view_as(x)
        view.register_hook(lambda gradient: input_gradients.update({place: read(layer, gradient)}))
        return tuple(view if one is x else one for one in args)

    with Probe(module, layers, input=read, output=read, gradient=read) as probe, ExitStack() as stack:
        for layer in filter(is_leaf, layers.values()):
            stack.callback(layer.register_forward_pre_hook(split_input).remove)
        yield probe.visits, input_gradients


def is_leaf(layer: nn.Module) -> bool:
    """Whether a layer has no layers within."""
    return next(layer.children(), None) is None


Blame = tuple[str, str] | None
"""The offender and a sentence about it; None if all is finite."""


def bad_weight(module: nn.Module) -> tuple[str, Numbers] | None:
    """The first trained parameter that is not finite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(local(parameter.detach()).isfinite().all()):
            return name, Numbers.of(parameter)
    return None


def blame_weights(module: nn.Module) -> Blame:
    """A parameter that was not finite before the step."""
    if (found := bad_weight(module)) is None:
        return None
    name, numbers = found
    return name.rpartition(".")[0] or name, f"{name} was not finite before the step ({numbers})."


def blame_batch(batch: Any) -> Blame:
    """A tensor of the batch."""
    for i, x in enumerate(tensors(batch)):
        if x.is_floating_point() and x.layout == torch.strided and not bool(x.isfinite().all()):
            return "batch", f"The batch itself is not finite: its tensor {i} ({Numbers.of(x)})."
    return None


def blame_forward(visits: Sequence[Visit], loss: float | None) -> Blame:
    """The first layer of the forward pass."""
    sides = [(v, v.input, False) for v in visits] + [(v, v.output, True) for v in visits]
    outputs: list[Visit] = []
    first: tuple[Visit, Numbers, bool] | None = None
    for visit, numbers, is_output in sorted((s for s in sides if s[1]), key=lambda side: side[1].time):
        if numbers.bad and first is None:
            first, before = (visit, numbers, is_output), outputs[-1:]
        elif is_output and not numbers.bad and first and not first[1].nan and visit.input and visit.input.infinite:
            first = None  # this layer made the infinities finite, as softmax does those of a mask
        if is_output:
            outputs.append(visit)
    if first is None and loss is not None and not math.isfinite(loss):
        last = f" The last layer, {outputs[-1].name}, returns {outputs[-1].output}." if outputs else ""
        return "loss", f"The output of every layer is finite; the loss that training_step computes is not.{last}"
    if first is None:
        return None
    visit, numbers, is_output = first
    name = visit.name
    if is_output:
        its_input = visit.input or "not a tensor"
        kind = type(visit.module).__name__
        return name, f"The first non-finite layer is {name} ({kind}); its output: {numbers}; its input: {its_input}."
    owner = enclosing(name, visits)
    after = f"after {before[0].name} and " if before else ""
    return owner, f"{owner} itself makes it, {after}before {name}, whose input is {numbers}."


def enclosing(name: str, visits: Sequence[Visit]) -> str:
    """The innermost layer that contains another; "training_step" if there is none."""
    names = (visit.name for visit in visits if name.startswith(f"{visit.name}."))
    return max(names, key=len, default="training_step")


def blame_backward(
    visits: Sequence[Visit], input_gradients: Mapping[int, Numbers], gradients: Mapping[str, Numbers]
) -> Blame:
    """The first layer of the backward pass, which is the last one of the forward pass.

    Args:
        visits: the passes through the layers.
        input_gradients: place of a pass -> the gradient of its input.
        gradients: parameter -> its gradient.
    """
    found: list[tuple[int, str, str]] = []  # place in the forward pass, offender, reason
    events = [(i, n, True) for i, n in input_gradients.items()]
    events += [(i, visit.gradient, False) for i, visit in enumerate(visits) if visit.gradient]
    bad = [event for event in events if event[1].bad]
    if bad:
        place, numbers, is_input = min(bad, key=lambda event: event[1].time)
        visit = visits[place]
        if is_input:
            reason = f"the gradient of its input: {numbers}; that of its output: {visit.gradient}"
            found.append((place, visit.name, f"{reason}; its input: {visit.input}"))
        else:
            is_last = all(later.gradient is None for later in visits[place + 1 :])
            reason = f"the gradient of the output of {visit.name}: {numbers}"
            found.append((place + 1, "loss" if is_last else enclosing(visit.name, visits), reason))
    for name, numbers in gradients.items():
        places = [i for i, visit in enumerate(visits) if name.startswith(f"{visit.name}.")]
        place = max(places, key=lambda i: (len(visits[i].name), i), default=-1)
        if numbers.bad and place < 0:
            found.append((place, name, f"its gradient: {numbers}"))
        elif numbers.bad and not (visits[place].gradient and visits[place].gradient.bad):
            reason = f"the gradient of {name}: {numbers}; its input: {visits[place].input}"
            found.append((place, visits[place].name, reason))
    if not found:
        return None
    _, offender, reason = max(found)
    return offender, f"The loss is finite; the backward pass is not, first in {offender}: {reason}."
