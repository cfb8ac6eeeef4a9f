"""The laws of normalization layers, as pytest parameters, and what the tests in `tests/norms` share.

A law is a test with a parameter `subject`: every class of `normzoo.norms.layers()` in every layout, `(N, C)`,
`(N, C, L)` and `(N, C, H, W)`. A law names no layer: it reads facts, and where a fact can be false the law is
two-sided, observed == declared. A new layer needs its formula in `references/`, and no test is edited. An exception
that the facts declare is a strict xfail; so is each layer of `broken.py`, which has one bug that the law must catch.

A layer that acts on a weight (C, I, *) has the same laws: its output channels are the samples N, and all other axes are
positions s.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from broken import BUGS
from references import State
from subjects import LAYOUTS, C, Subject, outputs_and_gradients, subjects
from torch import Tensor
from torch.func import functional_call

from normzoo.errors import InputError
from normzoo.norms import Norm

# What a law fails with: a claim that is wrong, or an error of torch.
FAILURES = (AssertionError, RuntimeError)

# Inputs of more values than the plain formula takes, and of no round number of blocks.
LARGE = {"NC": (300, 64), "NCL": (4, C, 601), "NCHW": (8, C, 16, 20)}

TESTS = Path(__file__).parents[1] / "norms"


def law_names() -> set[str]:
    """The names of all laws, as `facts.exceptions` and `broken.py` write them."""
    text = "".join(file.read_text() for file in TESTS.glob("test_*.py"))
    return {name.replace("_", "-") for name in re.findall(r"@law\(.*\)\ndef test_(\w+)\(", text)}


def law(
    *, when: Callable[[Subject], bool] = lambda subject: True, per_class: bool = False
) -> Callable[[Callable[..., None]], pytest.MarkDecorator]:
    """Runs a test for every subject, and for the layers with the bugs that it must catch.

    Args:
        when: the subjects that the law is about, by their facts.
        per_class: the law does not depend on the layout.
    """

    def parametrize(test: Callable[..., None]) -> pytest.MarkDecorator:
        name = test.__name__.removeprefix("test_").replace("_", "-")
        about = [s for s in subjects() if when(s) and (s.layout == "NCHW" or not per_class)]
        params = [of_subject(s, name, s.name if per_class else f"{s.name}-{s.layout}") for s in about]
        for bug in (bug for bug in BUGS if bug.law == name):
            # The same law passes for the layer without the bug: otherwise this failure proves nothing.
            assert Subject(bug.of, bug.layout, bug.of.__name__) in about
            assert name not in bug.of.facts.exceptions
            broken = Subject(bug.layer, bug.layout, bug.of.__name__)
            assert when(broken)
            mark = pytest.mark.xfail(strict=True, raises=bug.raises, reason="a bug that the law must catch")
            params.append(pytest.param(broken, id=f"bug-{bug.layer.__name__}", marks=mark))
        return pytest.mark.parametrize("subject", params)(test)

    return parametrize


def of_subject(subject: Subject, law: str, where: str) -> object:
    """The pytest parameter of a subject; a strict xfail if its facts declare an exception to the law.

    (N, C, L) runs with --slow: it has positions, as images have, and no memory format of its own.
    """
    reason = subject.layer.facts.exceptions.get(law)
    marks = [] if reason is None else [pytest.mark.xfail(strict=True, reason=reason, raises=FAILURES)]
    if subject.layout == "NCL":
        marks.append(pytest.mark.slow)
    return pytest.param(subject, id=where, marks=marks)


def fresh(layer: Norm, x: Tensor) -> Tensor:
    """The layer's output, without a trace in the layer."""
    return copy.deepcopy(layer)(x)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def assert_close(a: Tensor, b: Tensor, what: str = "output", tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance, check_stride=False, msg=lambda detail: f"{what}: {detail}"
    )


def buffers_of(layer: Norm) -> State:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_buffers(layer: Norm, other: Norm, tolerance: float = 1e-9) -> None:
    assert buffers_of(layer).keys() == buffers_of(other).keys()
    for name, buffer in layer.named_buffers():
        assert_close(buffer, other.get_buffer(name), name, tolerance)


def of_layer(layer: Norm, x: Tensor) -> dict[str, Tensor]:
    return outputs_and_gradients(layer, x, dict(layer.named_parameters()))


def assert_same_results(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], name, tolerance)


def refusal(layer: Norm, x: Tensor) -> InputError | None:
    """The error with which the layer refuses x; None if it takes x."""
    try:
        assert layer(x).isfinite().all()
    except InputError as error:
        return error
    return None


def set_axes(subject: Subject) -> set[int]:
    """The dimensions over which the layer's statistics run; those of a group or a window count as all."""
    rank, axes = len(LAYOUTS[subject.layout]), subject.layer.facts.axes
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
    for (samples, *others), memory_format in product(
        (LAYOUTS[subject.layout], LARGE[subject.layout]), formats_of(subject)
    ):
        x = subject.input(sizes=(subject.samples(samples), *others), dtype=dtype)
        yield x.contiguous(memory_format=memory_format)


def on_images(subject: Subject) -> bool:
    return subject.layout == "NCHW"


def on_vectors_or_images(subject: Subject) -> bool:
    """Not (N, C, L), for laws that take seconds: it has positions, as images have."""
    return subject.layout != "NCL"


def on_activations(subject: Subject) -> bool:
    return not subject.on_weights


def is_stateful(subject: Subject) -> bool:
    return subject.layer.facts.stateful


def assert_helpful(error: InputError, received: str) -> None:
    message = str(error)
    assert received in message, f"the message lacks what was received, {received}: {message}"
    remedy = r"\b(use|take|build|give|convert|call|lower|raise|move|need|default|defaults|divisors|choose|pass)\b"
    assert re.search(remedy, message), f"the message lacks a remedy: {message}"


def pure(layer: Norm) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of x and its parameters, which leaves the buffers alone; and the parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> Tensor:
        state = {**dict(zip(names, values, strict=True)), **buffers_of(layer)}
        return functional_call(layer, state, (x,))

    return f, tuple(p.detach().clone().requires_grad_() for p in layer.parameters())
