"""Norms folded into the layers beside them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normzoo.errors import InputError
from normzoo.monitoring.layers import is_norm, named_layers, of_kind, unwrapped
from normzoo.monitoring.probe import tensors
from normzoo.surgery._batches import evaluation, predict
from normzoo.surgery._flow import Flow, flow
from normzoo.surgery._linear import (
    CONVOLUTIONS,
    LINEAR,
    Function,
    affine_of,
    baked,
    bakes,
    double,
    linear_axis,
    pads,
    rounding,
    same,
    times,
    with_input,
    with_output,
)
from normzoo.surgery._placed import Placed, let_norms_run
from normzoo.surgery.report import Report, undo

TOLERANCE = 1e-5
"""The largest change of the network's output, relative to its largest value."""


class Stays(Exception):
    """Why a norm is not folded."""


def fold(net: nn.Module, example: Any) -> Report:
    """Folds the norms of a network in evaluation into the layers beside them; its output stays the same.

    `W' = scale W`,  `b' = scale b + shift`, of the layer before a norm that is `scale x + shift` in evaluation

    - BatchNorm and all norms like it go into the linear layer or convolution whose output they normalize, else into
      those that read their output; of `BatchNormAct2d` the activation remains.
    - The weight and the bias of LayerNorm, RMSNorm and others go into the linear layers that read their output.
    - Weights that are computed (`WeightNorm`, parametrizations of torch) become plain ones.

    What a layer reads is seen in one run on an example. A norm stays where folding would change the output: if another
    module reads the same tensor, if a layer runs twice, or before a convolution whose padding is not normalized; the
    table says why. Computed in float64, checked layer by layer and on the example.

    The network is for prediction from then on: in training, the folded norms would not normalize. `undo` puts the old
    layers back.

    Args:
        net: the network, in evaluation mode; also a LightningModule.
        example: a batch of one or two samples, as the network takes it: an input, or a dictionary of arguments.

    Returns:
        A table: what each norm was folded into, or why it stays. A note has the change of the network's output on the
        example, relative to its largest value.

    Raises:
        InputError: the network is in training mode or on the meta device, it has no norms, or its output would change
            by more than 1e-5. The network is as before.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4)).eval()
    >>> report = fold(net, torch.randn(1, 1, 8, 8))
    >>> report.rows[0]
    {'layer': '1', 'kind': 'BatchNorm2d', 'folded into': '0', 'stays because': None}
    >>> report.rows[1]["stays because"]
    'no linear layer before it; the network returns its output'
    >>> net[1]
    Identity()
    """
    net = unwrapped(net)
    require_precise_evaluation(net)
    before = outputs(net, example)
    folding = Folding(net, flow(net, example))
    try:
        rows = [*folding.norms(), *folding.weights()]
        folding.switched += let_norms_run(net, {step.new for step in folding.placed.values()})
        change = largest_change(before, outputs(net, example))
    except Exception as error:
        undo(Report(title="", steps=folding.steps))
        raise InputError(
            f"fold: the network does not run when its norms are folded ({error}): fold a part of it, as in "
            f"fold(net.backbone, example)."
        ) from error
    if not rows:
        raise InputError("fold: the network has no norms, and no weights that are computed.")
    report = Report(
        title=f"folded {sum(row['folded into'] is not None for row in rows)} of {len(rows)} norms",
        rows=rows,
        notes=[
            f"the output changes by at most {change:.1e} of its largest value"
            if before
            else "the network returns no numbers of floating point, which would show a change"
        ],
        steps=folding.steps,
    )
    if not change <= TOLERANCE:
        undo(report)
        raise InputError(
            f"fold: the output of the network would change by {change:.1e} of its largest value; some layer is used in "
            f"a way that one run does not show: fold a part of the network, as in fold(net.backbone, example). Or the "
            f"network magnifies rounding: fold it in float64, by net.double()."
        )
    return report


def require_precise_evaluation(net: nn.Module) -> None:
    """Raises `InputError` for norms in training mode, and for a dtype that is coarser than the tolerance."""
    training = [name for name, norm in of_kind(net, is_norm).items() if norm.training]
    if net.training or training:
        raise InputError(
            f"fold: {'the network' if net.training else training[0]} is in training mode, in which norms use the "
            f"batch: call net.eval() first."
        )
    for dtype in {p.dtype for p in net.parameters() if p.is_floating_point()}:
        if torch.finfo(dtype).eps > TOLERANCE:
            raise InputError(
                f"fold: the network has parameters of {dtype}, whose rounding changes its output by more than "
                f"{TOLERANCE}: fold it in float32, by net.float(), and convert it afterwards."
            )


def outputs(net: nn.Module, example: Any) -> list[Tensor]:
    """What a network returns, the tensors of floating point."""
    with evaluation(net):
        return [one.clone() for one in tensors(predict(net, example)) if one.is_floating_point()]


def largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference of two results, relative to the largest value of each tensor."""
    changes = [torch.zeros(())]
    for a, b in zip(before, after, strict=True):
        if a.numel():
            size = torch.where(a.isfinite(), a, 0).abs().max().clamp_min(1e-30)
            changes.append((torch.where(a == b, 0, a - b).abs().max() / size).cpu())  # equal where infinite, too
    return float(torch.stack(changes).max())  # NaN if one of them is


class Folding:
    """Folds the norms of a network, one after the other, in the order of registration.

    Args:
        net: the network.
        seen: what happened when it ran.
    """

    def __init__(self, net: nn.Module, seen: Flow) -> None:
        self.net, self.seen = net, seen
        self.named = {module: name for name, module in named_layers(net)}
        self.now = {module: module for module in self.named}
        """Module -> what has taken its place."""
        linear = [module for module in self.named if self.is_linear(module)]
        self.sources: dict[int, nn.Module] = {id(seen.output(module)): module for module in linear}
        """Tensor -> the layer that computes it, once the norms between are folded."""
        self.gone: dict[nn.Module, nn.Module] = {}
        """Norm -> the layer before it that it was folded into."""
        self.paths = [*net.named_modules(remove_duplicate=False)]
        self.placed: dict[str, Placed] = {}
        self.switched: list[Callable[[], None]] = []

    @property
    def steps(self) -> list[Callable[[], None]]:
        """What undoes it."""
        return [*self.placed.values(), *self.switched]

    def norms(self) -> Iterator[dict[str, Any]]:
        """Folds each norm that acts on activations; a row for each."""
        for name, norm in of_kind(self.net, is_norm).items():
            if self.seen.runs_once(norm) and self.seen.output(norm) is self.seen.input(norm):
                continue  # as NoNorm
            into, reasons = None, dict[str, None]()
            for attempt in (self.into_source, self.into_readers):
                try:
                    into = into or ", ".join(self.named[layer] for layer in attempt(norm))
                except Stays as reason:
                    reasons[str(reason)] = None
            why = None if into else "; ".join(reasons)
            yield {"layer": name, "kind": type(norm).__name__, "folded into": into, "stays because": why}

    def weights(self) -> Iterator[dict[str, Any]]:
        """Makes each weight that is computed a plain one; a row for each."""
        for layer, name in self.named.items():
            if not (isinstance(layer, LINEAR) and parametrize.is_parametrized(layer)):
                continue
            made: Any = layer.parametrizations
            kinds = [type(one).__name__.lstrip("_") for each in made.values() for one in each]
            if bakes(layer) and self.now[layer] is layer:
                self.replace(layer, baked(layer))
            into, why = (name, None) if bakes(layer) else (None, "it normalizes the input, too")
            yield {"layer": name, "kind": ", ".join(kinds), "folded into": into, "stays because": why}

    def into_source(self, norm: nn.Module) -> list[nn.Module]:
        """Folds a norm into the layer before it."""
        x, source = self.taken(norm)
        axis = linear_axis(source, x)
        bare, rest = self.parts(norm)
        scale, shift = affine_of(bare, x, axis) or stays("it normalizes by statistics of its input")
        old, new = self.now[source], with_output(self.now[source], scale, shift)
        if not same(double(old, bare), double(new), self.seen.input(source), rounding(new)):
            stays(f"{self.named[source]} computes with another weight than its own")
        self.replace(source, new)
        self.replace(norm, rest)
        if isinstance(rest, nn.Identity):
            self.sources[id(self.seen.output(norm))] = source
            self.gone[norm] = source
        return [source]

    def taken(self, norm: nn.Module) -> tuple[Tensor, nn.Module]:
        """The input of a norm and the layer that computes it, which nothing else reads."""
        if not self.seen.runs_once(norm):
            stays("it does not run once, on one tensor")
        x = self.seen.input(norm)
        source = self.sources.get(id(x)) or stays("no linear layer before it")
        inside = {source, norm, *(one for one, layer in self.gone.items() if layer is source)}
        for running in self.seen.readers.get(id(x), ()):
            if not inside & {*running}:
                stays(f"{self.reader(running)} reads its input, too")
        if self.seen.is_returned(x):
            stays("the network returns its input, too")
        return x, source

    def into_readers(self, norm: nn.Module) -> list[nn.Module]:
        """Folds a norm, or its weight and bias, into the layers that read its output."""
        readers = self.readers(norm)
        if not isinstance(self.parts(norm)[1], nn.Identity):
            stays("its activation follows")
        x = self.seen.input(norm)
        axis = linear_axis(readers[0], x)
        affine = affine_of(norm, x, axis)
        scale, shift, rest = (*affine, nn.Identity()) if affine else without_affine(norm, x, axis)
        new = {}
        for layer in readers:
            if shift.any() and pads(layer):
                stays(f"{self.named[layer]} pads its output with zeros")
            new[layer] = with_input(self.now[layer], scale, shift)
            if not same(double(norm, self.now[layer]), double(rest, new[layer]), x, rounding(new[layer])):
                stays(f"{self.named[layer]} computes with another weight than its own")
        for layer, one in new.items():
            self.replace(layer, one)
        self.replace(norm, rest)
        return readers

    def readers(self, norm: nn.Module) -> list[nn.Module]:
        """The layers that read the output of a norm, if all are linear."""
        if not self.seen.runs_once(norm):
            stays("it does not run once, on one tensor")
        y = self.seen.output(norm)
        found: dict[nn.Module, None] = {}
        for running in self.seen.readers.get(id(y), ()):
            if norm in running:
                continue
            layer = next((m for m in running if isinstance(m, (nn.Linear, *CONVOLUTIONS))), None)
            if layer is None or not self.seen.runs_once(layer) or self.seen.input(layer) is not y or not bakes(layer):
                stays(f"{self.reader(running)} reads its output")
            found[layer] = None
        if self.seen.is_returned(y) or not found:
            stays("the network returns its output" if self.seen.is_returned(y) else "no layer reads its output")
        return [*found]

    def is_linear(self, module: nn.Module) -> bool:
        """Whether a module is a linear layer that runs once and alone reads its weight, which nothing else computes."""
        if not (isinstance(module, LINEAR) and self.seen.runs_once(module) and bakes(module)):
            return False
        if {name for name, _ in module.named_children()} - {"parametrizations"}:  # one that quantizes it, for example
            return False
        return all(module in running for p in module.parameters() for running in self.seen.readers.get(id(p), ()))

    def reader(self, running: tuple[nn.Module, ...]) -> str:
        """The name of the module that reads a tensor."""
        return self.named.get(running[-1], "") or "the network itself"

    def parts(self, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
        """A norm without the activation and dropout that it includes, and these."""
        inner = {
            name: m for name, m in norm.named_children() if m in self.seen.outputs and not isinstance(m, nn.Identity)
        }
        if not inner:
            return norm, nn.Identity()
        bare = copy.deepcopy(norm)
        for name in inner:
            setattr(bare, name, nn.Identity())
        return bare, nn.Sequential(*inner.values()) if len(inner) > 1 else next(iter(inner.values()))

    def replace(self, module: nn.Module, new: nn.Module) -> None:
        """Puts a module in the place of another, under all its names."""
        self.now[module] = new.train(module.training)
        for path, one in self.paths:
            if one is module:
                self.net.set_submodule(path, new)
                self.placed[path] = Placed(self.net, path, module, new)


def compose(f: Function, g: Function) -> Function:
    """The function `f(g(x))`."""
    return lambda x: f(g(x))


def stays(reason: str) -> NoReturn:
    """Raises `Stays`."""
    raise Stays(reason)


def without_affine(norm: Any, x: Tensor, axis: int) -> tuple[Tensor, Tensor, nn.Module]:
    """The weight and the bias of a norm, (C,) each in float64, and a copy without them."""
    channels = x.shape[axis]
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    given = [one for one in (weight, bias) if one is not None]
    if not given or any(one.shape != (channels,) for one in given):
        stays("it normalizes by statistics of its input, and has no weight per channel")
    scale = torch.ones(channels, dtype=torch.float64) if weight is None else weight.detach().double()
    shift = torch.zeros_like(scale) if bias is None else bias.detach().double()
    affine = times(scale, shift, x.dim(), axis)
    for drop in (True, False):
        rest = copy.deepcopy(norm)
        for name, neutral in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
            if (one := getattr(norm, name, None)) is not None:
                setattr(rest, name, None if drop else nn.Parameter(neutral(one), one.requires_grad))
        with suppress(Exception):  # a class that needs its weight
            if same(double(norm), compose(affine, double(rest)), x):
                return scale, shift, rest
    stays("its weight does not multiply its output")
