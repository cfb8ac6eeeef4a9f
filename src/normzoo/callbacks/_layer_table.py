"""One training step, layer by layer: what each layer takes and returns, and the first that is not finite."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.monitoring.probe import Probe, Visit, first_tensor, named_layers, tensors
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
class Row:
    """One pass through a layer.

    Args:
        gradient: of the loss with respect to the output.
        input_gradient: of the loss with respect to the input, through this layer only.
    """

    name: str
    kind: str
    is_leaf: bool
    input: Numbers | None
    output: Numbers | None
    gradient: Numbers | None
    input_gradient: Numbers | None

    def events(self, *sites: str) -> Iterator[tuple[str, "Row", Numbers]]:
        """The tensors that were read at these sites."""
        for site in sites:
            if (numbers := getattr(self, site)) is not None:
                yield site, self, numbers


@dataclass
class Findings:
    """The result of looking at a step.

    Args:
        loss: what training_step returned; None if it returned nothing.
        rows: the passes through the layers, in the order of execution.
        offender: the name of the first layer that is not finite, "batch" or "loss"; empty if there is none.
        summary: the same in a sentence.
    """

    loss: float | None = None
    rows: list[Row] = field(default_factory=list)
    offender: str = ""
    summary: str = ""

    def table(self) -> str:
        """One line per layer, in the order of execution; `>` marks the offender."""
        lines = [("layer", "", "input", "output", "gradient of the output")]
        for row in self.rows:
            if row.is_leaf or row.name == self.offender:
                mark = ">" if row.name == self.offender else ""
                cells = ("-" if n is None else n.brief() for n in (row.input, row.output, row.gradient))
                lines.append((mark + row.name, row.kind, *cells))
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
    original, module = replica.original, replica.refresh().module
    weights = {name: p.detach().clone().requires_grad_() for name, p in original.named_parameters() if p.requires_grad}
    gradients: dict[str, Numbers] = {}
    with watch(module) as rows:
        loss = replica.loss(batch, batch_idx, weights)
        if loss is not None and weights:
            found = torch.autograd.grad(loss * factor, list(weights.values()), allow_unused=True)
            gradients = {name: Numbers.of(g) for name, g in zip(weights, found, strict=True) if g is not None}
    findings = Findings(None if loss is None else float(loss.detach()), rows)
    findings.offender, findings.summary = (
        blame_weights(original)
        or blame_batch(batch)
        or blame_forward(rows, findings.loss)
        or blame_backward(rows, gradients)
        or ("", "Repeated on a copy, the step is finite.")
    )
    return findings


@contextmanager
def watch(module: nn.Module) -> Iterator[list[Row]]:
    """Reads all layers of a module; the list is filled at the end."""
    clock, rows = count(), []
    layers = {name: layer for name, layer in named_layers(module) if name}
    input_gradients: dict[int, Numbers] = {}

    def read(layer: nn.Module, x: Tensor) -> Numbers:
        return Numbers.of(x, next(clock))

    def read_input_gradient(visit: Visit) -> Callable[[Tensor], None]:
        return lambda gradient: input_gradients.update({id(visit): Numbers.of(gradient, next(clock))})

    def split_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Passes a layer a view of its input: the gradient of the view is the part that comes through this layer."""
        x = first_tensor(args)
        if x is None or not x.requires_grad or x.layout != torch.strided:
            return None
        view = x.view_as(x)
        view.register_hook(read_input_gradient(probe.visits[-1]))
        return tuple(view if one is x else one for one in args)

    probe = Probe(module, layers, input=read, output=read, gradient=read)
    leaves = [layer for layer in layers.values() if is_leaf(layer)]
    with probe:
        handles = [layer.register_forward_pre_hook(split_input) for layer in leaves]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()
    for v in probe.visits:
        kind, leaf = type(v.module).__name__, is_leaf(v.module)
        rows.append(Row(v.name, kind, leaf, v.input, v.output, v.gradient, input_gradients.get(id(v))))


def is_leaf(layer: nn.Module) -> bool:
    """Whether a layer has no layers within."""
    return next(layer.children(), None) is None


Blame = tuple[str, str] | None
"""The offender and a sentence about it, or None if all is finite."""


def bad_weight(module: nn.Module) -> tuple[str, Numbers] | None:
    """The first trained parameter that is not finite."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(local(parameter.detach()).isfinite().all()):
            return name, Numbers.of(parameter)
    return None


def blame_weights(module: nn.Module) -> Blame:
    """A parameter that was not finite before the step."""
    found = bad_weight(module)
    if found is None:
        return None
    name, numbers = found
    return name.rpartition(".")[0] or name, f"{name} was not finite before the step ({numbers})."


def blame_batch(batch: Any) -> Blame:
    """A tensor of the batch."""
    for i, x in enumerate(tensors(batch)):
        if x.is_floating_point() and x.layout == torch.strided and not bool(x.isfinite().all()):
            return "batch", f"The batch itself is not finite: its tensor {i} ({Numbers.of(x)})."
    return None


def blame_forward(rows: Sequence[Row], loss: float | None) -> Blame:
    """The first layer of the forward pass."""
    events = sorted((event for row in rows for event in row.events("input", "output")), key=lambda e: e[2].time)
    outputs: list[Row] = []
    first, last = None, None
    for site, row, numbers in events:
        if numbers.bad and first is None:
            first, last = (site, row, numbers), outputs[-1] if outputs else None
        elif first and not first[2].nan and site == "output" and not numbers.bad and has_infinite_input(row):
            first = None  # this layer made the infinities finite, as softmax does those of a mask
        if site == "output":
            outputs.append(row)
    if first is None and loss is not None and not math.isfinite(loss):
        output = f" The last layer, {outputs[-1].name}, returns {outputs[-1].output}." if outputs else ""
        return "loss", f"The output of every layer is finite; the loss that training_step computes is not.{output}"
    if first is None:
        return None
    site, row, numbers = first
    if site == "output":
        took = f"its input: {row.input}" if row.input else "its input is not a tensor"
        return row.name, f"The first non-finite layer is {row.name} ({row.kind}); its output: {numbers}; {took}."
    owner = enclosing(row, rows)
    after = f"after {last.name} and " if last else ""
    return owner, f"{owner} itself makes it, {after}before {row.name}, whose input is {numbers}."


def has_infinite_input(row: Row) -> bool:
    return row.input is not None and row.input.infinite > 0 and not row.input.nan


def enclosing(row: Row, rows: Sequence[Row]) -> str:
    """The name of the innermost layer that contains another, "training_step" if there is none."""
    names = (other.name for other in rows if row.name.startswith(f"{other.name}."))
    return max(names, key=len, default="training_step")


def blame_backward(rows: Sequence[Row], gradients: Mapping[str, Numbers]) -> Blame:
    """The first layer of the backward pass, which is the last one of the forward pass."""
    events = (event for row in rows for event in row.events("gradient", "input_gradient"))
    found: list[tuple[int, str, str]] = []
    bad = sorted((event for event in events if event[2].bad), key=lambda event: event[2].time)
    if bad:
        site, row, numbers = bad[0]
        place = next(i for i, one in enumerate(rows) if one is row)
        if site == "input_gradient":
            says = f"the gradient of its input: {numbers}; the gradient of its output: {row.gradient}; its input: "
            found.append((place, row.name, f"{says}{row.input}"))
        else:
            later = any(one.gradient is not None for one in rows[place + 1 :])
            says = f"the gradient of the output of {row.name} ({row.kind}): {numbers}"
            found.append((place + 1, enclosing(row, rows) if later else "loss", says))
    for name, numbers in gradients.items():
        places = [i for i, row in enumerate(rows) if name.startswith(f"{row.name}.")]
        if numbers.bad and places:
            row = max((rows[i] for i in places), key=lambda one: len(one.name))
            if row.gradient is None or not row.gradient.bad:
                found.append((places[-1], row.name, f"the gradient of {name}: {numbers}; its input: {row.input}"))
        elif numbers.bad:
            found.append((-1, name, f"its gradient: {numbers}"))
    if not found:
        return None
    _, name, says = max(found, key=lambda one: one[0])
    return name, f"The loss is finite; the backward pass is not, first in {name}: {says}."
