"""The layers as they stand before the laws, and beside what they are compared with.

The laws assert that a comparison finds no difference; `scripts/docs` writes down how large it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from references import REFERENCES, Reference, State, reference
from torch import Tensor

from normzoo.norms import Norm, layers
from normzoo.norms._arguments import keyword_defaults
from normzoo.testing._compare import outputs_and_gradients as outputs_and_gradients
from normzoo.testing._subject import LAYOUTS as LAYOUTS
from normzoo.testing._subject import C as C
from normzoo.testing._subject import Subject as Laid


@dataclass(frozen=True)
class Subject(Laid):
    """A layer class of the zoo in one layout; `name` is that of its reference."""

    layer: type[Norm]

    @property
    def reference(self) -> Reference:
        return reference(self.name)

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """The default arguments, the others that the reference names, and an eps that can be seen."""
        named = self.reference.settings
        varies = "eps" not in keyword_defaults(self.layer) or any("eps" in settings for settings in named)
        return [{}, *named, *([] if varies else [{"eps": 0.1}])]

    def exact(self, layer: Norm, x: Tensor) -> tuple[Tensor, State]:
        """By the reference, for default arguments."""
        state = state_of(layer)
        return self.reference.formula(x.double(), state, layer.training, **arguments_of(layer, {})), state


def subjects() -> list[Subject]:
    found = [Subject(layer, layout, name) for name, layer in layers().items() for layout in LAYOUTS]
    return [subject for subject in found if subject.meaningful]


def state_of(layer: Norm) -> State:
    """Parameters and buffers by name, in float64, apart from the layer."""
    own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {n: v.detach().clone().double() if v.is_floating_point() else v.clone() for n, v in own.items()}


def arguments_of(layer: Norm, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**keyword_defaults(type(layer)), **settings}


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
