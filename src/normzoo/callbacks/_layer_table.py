"""What every layer of one training step takes and returns, and the first whose numbers are not finite."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from normzoo.monitoring.probe import Probe, first_tensor, named_layers, tensors
from normzoo.monitoring.replica import Replica

CLEAN = "-"


@dataclass(frozen=True)
class Numbers:
    """What a tensor holds.

    Args:
        shape: its sizes.
        low: the least finite value; None where there is none.
        high: the greatest.
        nan: how many are no number.
        infinite: how many are infinite.
    """

    shape: tuple[int, ...]
    low: float | None
    high: float | None
    nan: int
    infinite: int

    @classmethod
    def of(cls, x: Tensor) -> "Numbers":
        x = x.detach()
        finite = x[x.isfinite()]
        some = finite.numel() > 0 and not x.is_complex()
        low, high = (finite.min().item(), finite.max().item()) if some else (None, None)
        return cls(tuple(x.shape), low, high, int(x.isnan().sum()), int(x.isinf().sum()))

    @property
    def bad(self) -> int:
        return self.nan + self.infinite

    @property
    def share(self) -> float:
        """Of values that are not finite."""
        size = 1
        for length in self.shape:
            size *= length
        return self.bad / max(size, 1)

    def told(self) -> str:
        """In words."""
        size = " x ".join(map(str, self.shape)) or "one value"
        within = "no finite value" if self.low is None else f"within [{self.low:.4g}, {self.high:.4g}]"
        kinds = [f"{n:,} {kind}" for n, kind in ((self.nan, "nan"), (self.infinite, "infinite")) if n]
        return f"{size}, {within}{', ' if kinds else ''}{' and '.join(kinds)}"

    def brief(self) -> str:
        """In a column of a table."""
        if self.low is None:
            return "nothing finite"
        return f"{self.low:.3g} .. {self.high:.3g}" + (f", {100 * self.share:.3g} % bad" if self.bad else "")


@dataclass
class Row:
    """A pass through a layer."""

    name: str
    kind: str
    is_leaf: bool
    input: Numbers | None = None
    output: Numbers | None = None
    gradient: Numbers | None = None
    """Of the loss with respect to the output."""
    passed_on: Numbers | None = None
    """Of the loss with respect to the input, as far as it comes through this layer."""


@dataclass
class Findings:
    """What was seen of a step.

    Args:
        loss: what training_step returned; None for nothing.
        rows: the layers, in the order of execution.
        offender: the name of the first that made what is not finite: a layer, "batch", "loss", or empty for nobody.
        says: the same in a sentence.
    """

    loss: float | None = None
    rows: list[Row] = field(default_factory=list)
    offender: str = ""
    says: str = ""

    def table(self) -> str:
        """The layers, a line for each, in the order of execution."""
        head = ("layer", "", "input", "output", "gradient of the output")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            if row.is_leaf or row.name == self.offender:
                seen = [CLEAN if n is None else n.brief() for n in (row.input, row.output, row.gradient)]
                lines.append(((">" if row.name == self.offender else "") + row.name, row.kind, *seen))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {"loss": self.loss, "offender": self.offender, "says": self.says, "rows": [asdict(r) for r in self.rows]}


@dataclass
class Event:
    """A tensor that passed, in the order of time."""

    site: str
    row: Row
    numbers: Numbers
    inside: tuple[Row, ...]
    """The passes that were under way, the outermost first."""


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, but the whole."""
    return {name: one for name, one in named_layers(module) if name}


class Watch:
    """Notes what passes through the layers of a module during one forward and backward pass.

    Args:
        module: whose layers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = layers_of(module)
        names = {layer: name for name, layer in self.layers.items()}
        self.rows: list[Row] = []
        self.open: list[tuple[nn.Module, Row]] = []
        self.closed: dict[nn.Module, list[Row]] = {}
        self.forward: list[Event] = []
        self.backward: list[Event] = []

        def entered(layer: nn.Module, x: Tensor) -> None:
            self.forward.append(self.event("input", self.row_of(layer, names), x))

        def left(layer: nn.Module, x: Tensor) -> None:
            row = self.row_of(layer, names)
            while self.open and self.open.pop()[0] is not layer:
                pass
            self.closed.setdefault(layer, []).append(row)
            self.forward.append(self.event("output", row, x))

        def gradient(layer: nn.Module, x: Tensor) -> None:
            waiting = [row for row in self.closed.get(layer, ()) if row.gradient is None]
            if waiting:  # the backward pass comes to the last pass first
                self.backward.append(self.event("gradient", waiting[-1], x))

        self.probe = Probe(module, self.layers, input=entered, output=left, gradient=gradient)

    def row_of(self, layer: nn.Module, names: Mapping[nn.Module, str]) -> Row:
        """The pass through a layer that is under way, or a new one."""
        if any(one is layer for one, _ in self.open):
            return next(row for one, row in reversed(self.open) if one is layer)
        row = Row(names[layer], type(layer).__name__, not any(True for _ in layer.children()))
        self.rows.append(row)
        self.open.append((layer, row))
        return row

    def event(self, site: str, row: Row, x: Tensor) -> Event:
        numbers = Numbers.of(x)
        setattr(row, site, numbers)
        return Event(site, row, numbers, tuple(r for _, r in self.open if r is not row))

    def own_gradient(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Gives a layer a view of its input, through which only its own share of the gradient comes."""
        x = first_tensor(args)
        if x is None or not x.requires_grad or x.layout != torch.strided or not self.open:
            return None
        row = next((row for one, row in reversed(self.open) if one is layer), None)
        if row is None:
            return None
        view = x.view_as(x)

        def read(gradient: Tensor) -> None:
            self.backward.append(self.event("passed_on", row, gradient))

        view.register_hook(read)
        return tuple(view if one is x else one for one in args)

    def __enter__(self) -> "Watch":
        self.probe.__enter__()
        leaves = [layer for layer in self.layers.values() if not any(True for _ in layer.children())]
        self.handles = [layer.register_forward_pre_hook(self.own_gradient) for layer in leaves]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.probe.__exit__(*exception)


def look(replica: Replica, batch: Any, batch_idx: int, factor: float = 1.0) -> Findings:
    """Runs a step on a copy, forward and backward, and finds the first layer whose numbers are not finite.

    Args:
        replica: the copy, at the weights, buffers and random numbers from before the step.
        batch: what training_step takes.
        batch_idx: its number.
        factor: what the loss is multiplied by before the backward pass, as for scaled or accumulated gradients.
    """
    replica.refresh()
    watch = Watch(replica.module)
    original = replica.original
    weights = {name: p.detach().clone().requires_grad_() for name, p in original.named_parameters() if p.requires_grad}
    gradients: dict[str, Numbers] = {}
    with watch:
        loss = replica.loss(batch, batch_idx, weights)
        if loss is not None and weights:
            found = torch.autograd.grad(loss * factor, list(weights.values()), allow_unused=True)
            gradients = {
                name: Numbers.of(g) for name, g in zip(weights, found, strict=True) if g is not None and not g.is_sparse
            }
    value = None if loss is None else float(loss.detach())
    findings = Findings(value, watch.rows)
    findings.offender, findings.says = (
        blame_weights(original)
        or blame_batch(batch)
        or blame_forward(watch.forward, value)
        or blame_backward(watch, gradients)
        or ("", "Run once more by itself, the step is finite.")
    )
    return findings


Blame = tuple[str, str] | None


def blame_weights(module: LightningModule | nn.Module) -> Blame:
    """The first parameter that was not finite before the step."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and not bool(parameter.detach().isfinite().all()):
            layer = name.rpartition(".")[0] or name
            return (
                layer,
                f"{name} was not finite before the step ({Numbers.of(parameter).told()}): an update made it so.",
            )
    return None


def blame_batch(batch: Any) -> Blame:
    """The batch itself."""
    for i, x in enumerate(tensors(batch)):
        if x.is_floating_point() and x.layout == torch.strided and not bool(x.isfinite().all()):
            return "batch", f"The batch itself: its tensor {i} ({Numbers.of(x).told()})."
    return None


def blame_forward(events: Sequence[Event], loss: float | None) -> Blame:
    """The first layer of the forward pass; infinities that a later layer makes finite again, as a mask's, count not."""
    candidate: int | None = None
    for i, event in enumerate(events):
        if event.numbers.bad and candidate is None:
            candidate = i
        elif candidate is not None and event.site == "output" and not event.numbers.bad:
            healed = event.row.input is not None and event.row.input.bad and not event.row.input.nan
            if healed and not events[candidate].numbers.nan:
                candidate = None
    if candidate is not None:
        event = events[candidate]
        row = event.row
        if event.site == "output":
            took = f"its input: {row.input.told()}" if row.input else "its input is no tensor"
            return row.name, f"The first is {row.name} ({row.kind}); its output: {event.numbers.told()}; {took}."
        around = event.inside[-1].name if event.inside else "training_step"
        before = next((e.row.name for e in reversed(events[:candidate]) if e.site == "output"), None)
        between = f"after {before} and before {row.name}" if before else f"before {row.name}"
        return around, f"It is made in {around} itself, {between}, whose input is {event.numbers.told()}."
    if loss is not None and not torch.tensor(loss).isfinite():
        last = next((e for e in reversed(events) if e.site == "output"), None)
        given = f" of {last.row.name}'s output ({last.numbers.told()})" if last else ""
        return "loss", f"Every layer's output is finite: what training_step makes{given} is not."
    return None


def blame_backward(watch: Watch, gradients: Mapping[str, Numbers]) -> Blame:
    """The first layer of the backward pass, where the forward pass was finite."""
    events = watch.backward
    order = {id(row): i for i, row in enumerate(watch.rows)}
    first = next((e for e in events if e.numbers.bad), None)
    found: list[tuple[int, str, str]] = []
    if first is not None:
        row = first.row
        if first.site == "passed_on":
            took = f"the gradient of its output: {row.gradient.told()}; " if row.gradient else ""
            says = f"its gradient with respect to its input: {first.numbers.told()}; {took}its input: {told(row.input)}"
            found.append((order[id(row)], row.name, says))
        else:
            later = [r for r in watch.rows[order[id(row)] + 1 :] if r.gradient is not None]
            name = "loss" if not later else (first.inside or (row,))[-1].name
            says = f"the gradient that comes to {row.name} ({row.kind}) is {first.numbers.told()}"
            found.append((order[id(row)] + 1, name, says))
    for name, numbers in gradients.items():
        owner = name.rpartition(".")[0]
        rows = [row for row in watch.rows if row.name == owner or owner.startswith(f"{row.name}.")]
        if numbers.bad and rows and not (rows[-1].gradient is not None and rows[-1].gradient.bad):
            row = rows[-1]
            says = f"the gradient of {name}: {numbers.told()}; its input: {told(row.input)}"
            found.append((order[id(row)], row.name, says))
    if not found:
        broken = next(((n, g) for n, g in gradients.items() if g.bad), None)
        return None if broken is None else (broken[0], f"The gradient of {broken[0]} is {broken[1].told()}.")
    _, name, says = max(found, key=lambda one: one[0])
    return name, f"The loss is finite; the backward pass is not, first at {name}: {says}."


def told(numbers: Numbers | None) -> str:
    return "no tensor" if numbers is None else numbers.told()
