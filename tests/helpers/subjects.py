"""The layers as they stand before the laws, and beside what they are compared with.

The laws assert that a comparison finds no difference; `scripts/docs` writes down how large it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from references import REFERENCES, Reference, State, reference
from torch import Tensor

from normzoo.norms import Norm, layers
from normzoo.norms._arguments import keyword_defaults

C = 8
LAYOUTS = {"NC": (6, C), "NCL": (4, C, 5), "NCHW": (4, C, 3, 2)}


@dataclass(frozen=True)
class Subject:
    """A layer class in one layout; `name` is that of its reference."""

    layer: type[Norm]
    layout: str
    name: str

    @property
    def on_weights(self) -> bool:
        return self.layer.facts.acts_on == "weight"

    @property
    def meaningful(self) -> bool:
        return self.layer.facts.dense or self.layout != "NC"

    @property
    def reference(self) -> Reference:
        return reference(self.name)

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """The default arguments, the others that the reference names, and an eps that can be seen."""
        named = self.reference.settings
        varies = "eps" not in keyword_defaults(self.layer) or any("eps" in settings for settings in named)
        return [{}, *named, *([] if varies else [{"eps": 0.1}])]

    @property
    def channel_axis(self) -> int:
        return 0 if self.on_weights else 1

    def build(
        self, settings: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float64, num_features: int = C
    ) -> Norm:
        """A layer in training whose parameters are not at their start, where a wrong one may not show."""
        layer = self.layer(num_features, **(settings or {})).to(dtype)
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64), alpha=0.3)
            for name in layer.facts.gates:
                p = layer.get_parameter(name)
                p.copy_(0.1 + 0.8 * torch.rand(p.shape, generator=g, dtype=torch.float64))
            for name in () if layer.facts.takes_reference else layer.facts.constants:
                b = layer.get_buffer(name)
                b.add_(torch.rand(b.shape, generator=g, dtype=torch.float64))
        return self.ready(layer, dtype)

    def default(self, num_features: int = C, dtype: torch.dtype = torch.float64, **settings: Any) -> Norm:
        """A layer as it is built: facts speak of default arguments, and moments of a unit affine."""
        return self.ready(self.layer(num_features, **settings).to(dtype), dtype)

    def ready(self, layer: Norm, dtype: torch.dtype) -> Norm:
        """With what it needs before laws can hold: a reference batch; the same random numbers in every pass."""
        if layer.facts.random:
            layer.register_forward_pre_hook(draw_again)
        if layer.facts.takes_reference:
            layer(self.input(99, dtype=dtype, sizes=(7, layer.num_features, *LAYOUTS[self.layout][2:])))
        return layer

    def experienced(self, settings: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float64) -> Norm:
        """A layer in training whose running statistics are not at their start either."""
        layer = self.build(settings, dtype)
        for seed in (11, 12) if layer.facts.stateful else ():
            x = self.input(seed, dtype=dtype).requires_grad_()
            torch.autograd.grad(layer(x).pow(2).sum(), x)  # some statistics are of gradients
        return layer

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
        multiple = self.layer.facts.batch_multiple
        return math.ceil(n / multiple) * multiple

    @property
    def groups(self) -> Mapping[str, Any]:
        """Arguments with which the channels of a group are not all channels."""
        return {"num_groups": 2} if "C/G" in self.layer.facts.axes else {}

    def shape(self, *, samples: int | None = None, sizes: tuple[int, ...] | None = None) -> tuple[int, ...]:
        n, c, *positions = sizes or LAYOUTS[self.layout]
        n = n if samples is None else samples
        return (c, n, *positions) if self.on_weights else (n, c, *positions)


def subjects() -> list[Subject]:
    found = [Subject(layer, layout, name) for name, layer in layers().items() for layout in LAYOUTS]
    return [subject for subject in found if subject.meaningful]


def draw_again(layer: Norm, inputs: tuple[Tensor, ...]) -> None:
    """Before every forward pass of a layer that draws random numbers."""
    torch.manual_seed(0)


def state_of(layer: Norm) -> State:
    """Parameters and buffers by name, in float64, apart from the layer."""
    own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {n: v.detach().clone().double() if v.is_floating_point() else v.clone() for n, v in own.items()}


def arguments_of(layer: Norm, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**keyword_defaults(type(layer)), **settings}


def outputs_and_gradients(
    f: Callable[[Tensor], Tensor], x: Tensor, parameters: Mapping[str, Tensor], seed: int = 5
) -> dict[str, Tensor]:
    """y, and the gradients of x and the parameters, for a fixed gradient of y."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    y = f(x)
    g = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)
    wanted = {"x": x, **parameters}
    found = torch.autograd.grad(y, list(wanted.values()), dy, allow_unused=True, materialize_grads=True)
    return {"output": y.detach(), **{f"gradient of {n}": d for n, d in zip(wanted, found, strict=True)}}


def experiences(subject: Subject) -> Iterator[tuple[int, bool]]:
    """Sample counts, and whether the layer trains: several steps of training, then evaluation."""
    n = LAYOUTS[subject.layout][0]
    yield from ((n, True), (subject.samples(n - 1), True), (subject.samples(n + 2), True), (n, False))


# Comparisons: (what, observed, expected), one after the other. The laws make them in float64.

Comparison = Iterator[tuple[str, Tensor, Tensor]]


def beside_formula(subject: Subject, dtype: torch.dtype = torch.float64) -> Comparison:
    """Outputs and running state of the layer, and of its reference in float64: with all settings, step by step."""
    for settings in subject.settings:
        layer = subject.build(settings, dtype)
        state = state_of(layer)
        for step, (samples, training) in enumerate(experiences(subject)):
            x = subject.input(seed=step, samples=samples, dtype=dtype)
            y = layer.train(training)(x)
            expected = subject.reference.formula(x.double(), state, training, **arguments_of(layer, settings))
            yield f"output at step {step}, {settings}", y, expected
            for name, buffer in layer.named_buffers():
                yield f"{name} at step {step}, {settings}", buffer, state[name].to(buffer.dtype)


def gradients_beside_formula(subject: Subject, dtype: torch.dtype = torch.float64) -> Comparison:
    """Gradients of the layer, and by autograd of its reference in float64: with all settings, in both modes."""
    for settings in subject.settings:
        layer = subject.experienced(settings, dtype)
        for training in (True, False):
            layer.train(training)
            state = state_of(layer)
            learned = {name: state[name].requires_grad_() for name, _ in layer.named_parameters()}
            formula = partial(
                subject.reference.formula, state=state, training=training, **arguments_of(layer, settings)
            )
            x = subject.input(dtype=dtype)
            observed = outputs_and_gradients(layer, x, dict(layer.named_parameters()))
            expected = outputs_and_gradients(formula, x.double(), learned)
            for name, value in observed.items():
                yield f"{name}, training={training}, {settings}", value, expected[name]
            for name, buffer in layer.named_buffers():
                yield f"{name} after the gradient, {settings}", buffer, state[name].to(buffer.dtype)


def oracles_of(subject: Subject) -> list[str]:
    """The implementations by others that are comparable in this layout."""
    if subject.name not in REFERENCES:  # every law that needs the reference says what to write
        return []
    return [name for name, oracle in REFERENCES[subject.name].oracles.items() if subject.layout in oracle.layouts]


def beside_oracle(subject: Subject, name: str, dtype: torch.dtype = torch.float64) -> Comparison:
    """Outputs, gradients and running state of the layer and of an implementation by others, in the same dtype."""
    oracle = subject.reference.oracles[name]
    layer = subject.experienced(oracle.settings, dtype)
    other = oracle.build(layer, subject.input(dtype=dtype))
    if dtype is not torch.float64:  # the laws' own, which some modules are made for
        other = other.to(dtype)
    for step, (samples, training) in enumerate(experiences(subject)):
        if training and not oracle.trains:
            continue
        x = subject.input(seed=step, samples=samples, dtype=dtype)
        layer.train(training)
        other.train(training)
        observed, expected = outputs_and_gradients(layer, x, {}), outputs_and_gradients(other, x, {})
        for what, value in observed.items():
            yield f"{what} at step {step}", value, expected[what]
    if oracle.same_state:
        for buffer_name, buffer in layer.named_buffers():
            yield buffer_name, buffer, other.get_buffer(buffer_name)
        returned = subject.layer(C, **oracle.settings).to(dtype).eval()
        returned.load_state_dict(other.state_dict(), strict=True)
        x = subject.input(dtype=dtype)
        yield "output after the state has come back", returned(x), other.eval()(x)
