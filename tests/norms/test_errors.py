"""Arguments, documentation and error messages."""

import inspect
import re
from types import NoneType
from typing import get_args

import pytest
import torch
from broken import BUGS
from laws import assert_close, assert_helpful, buffers_of, fresh, law, law_names, refusal, same_tensors
from references import OUT_OF_RANGE
from references.starts import start
from subjects import C, Subject, arguments_of
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms._arguments import keyword_defaults


@law(per_class=True)
def test_builds_for_any_width(subject: Subject) -> None:
    """The layer builds for any number of channels, and all its other arguments have defaults."""
    for features in (1, 2, 3, 7, 12, 64, 100, 257):
        layer = subject.layer(features)
        assert layer.num_features == features
        assert str(features) in repr(layer)
    arguments = list(inspect.signature(subject.layer).parameters.values())
    assert arguments[0].name == "num_features"
    assert all(a.default is not a.empty for a in arguments[1:])


@law(per_class=True)
def test_starts_as_the_paper_says(subject: Subject) -> None:
    """Parameters and buffers start at the values of the paper."""
    for settings in subject.settings:
        layer = subject.layer(C, **settings).double()
        for name, tensor in layer.state_dict().items():
            if name == "u" and subject.on_weights:  # any direction, of length 1
                tensor = tensor.norm()
                expected: float | Tensor | None = 1.0
            else:
                expected = start(subject.name, name, arguments_of(layer, settings))
            assert expected is not None, f"say where {name} starts in tests/helpers/references/starts.py"
            expected = torch.as_tensor(expected, dtype=tensor.dtype).expand(tensor.shape)
            assert_close(tensor, expected, f"{name} of {settings}", 1e-6)


@law(per_class=True)
def test_facts_and_documentation(subject: Subject) -> None:
    """The docstring names the formula, the arguments and the paper of the facts."""
    facts, doc = subject.layer.facts, " ".join(inspect.cleandoc(subject.layer.__doc__ or "").split())
    path = subject.layer.__module__.removeprefix("normzoo.norms.").split(".")
    assert facts.family == (path[0] if len(path) == 2 else "own"), "the family is the folder"
    assert doc, "a layer has a docstring"
    equations = re.findall(r"`([^`]*=[^`]*)`", doc)
    assert any(facts.formula.startswith(e) for e in equations), f"no equation of {equations} opens {facts.formula!r}"
    for name in ("num_features", *keyword_defaults(subject.layer)):
        assert f"{name}:" in doc, f"the docstring lacks {name}"
    assert facts.paper is not None or facts.family == "pointwise", "only a layer that computes nothing has no paper"
    if facts.paper is not None:
        assert facts.paper.title in doc
        assert f"{facts.paper.year}" in doc
        assert facts.paper.arxiv is None or f"arXiv {facts.paper.arxiv}" in doc
    unknown = set(facts.exceptions) - law_names()
    assert not unknown, f"exceptions to laws that do not exist: {unknown}"
    assert all(facts.exceptions.values()), "an exception has a reason"


@law(per_class=True)
def test_wrong_arguments(subject: Subject) -> None:
    """Every argument out of range raises an error that names the value and a remedy."""
    for argument, parameter in inspect.signature(subject.layer).parameters.items():
        for value in OUT_OF_RANGE.get(argument, ()):
            if value is None and NoneType in get_args(parameter.annotation):
                continue
            with pytest.raises(InputError) as raised:
                subject.layer(**{"num_features": C, argument: value})
            assert_helpful(raised.value, received=f"{argument}={value!r}")


@law(per_class=True)
def test_whole_numbers(subject: Subject) -> None:
    """What takes a number takes 1 for 1.0, and 0 for 0.0 where 1 is out of range."""
    x = subject.input(dtype=torch.float32)
    for argument, default in keyword_defaults(subject.layer).items():
        if not isinstance(default, float):
            continue
        outputs = []
        for kind in (int, float):
            torch.manual_seed(0)
            try:
                layer = subject.layer(C, **{argument: kind(1)})
            except InputError:
                layer = subject.layer(C, **{argument: kind(0)})
            outputs.append(fresh(subject.ready(layer, torch.float32), x))
        assert_close(outputs[0], outputs[1], argument)


@law(per_class=True)
def test_ranges_are_tested(subject: Subject) -> None:
    """Every number that a layer takes has values out of its range, and the laws know some."""
    defaults = keyword_defaults(subject.layer)
    numbers = {n for n, v in defaults.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert numbers <= set(OUT_OF_RANGE), "add values out of range to tests/helpers/references/arguments.py"


@law()
def test_wrong_inputs(subject: Subject) -> None:
    """Every input that the layer cannot take raises an error that names it, and changes no running statistics."""
    x = subject.input(dtype=torch.float32)
    narrower = x.narrow(subject.channel_axis, 0, C - 1)
    inputs = [narrower, torch.cat([x, x], dim=subject.channel_axis), x.to(torch.int64), x > 0, torch.ones(C), x.sum()]
    inputs += [x[..., :0]] if x.dim() > 2 else []
    for training in (True, False):
        layer = subject.experienced(dtype=torch.float32).train(training)
        before = buffers_of(layer)
        for wrong in inputs:
            with pytest.raises(InputError) as raised:
                layer(wrong)
            received = str(tuple(wrong.shape)) if wrong.is_floating_point() else str(wrong.dtype)
            assert_helpful(raised.value, received)
        assert same_tensors(buffers_of(layer), before), "an error moved the running statistics"


@law(per_class=True)
def test_dense(subject: Subject) -> None:
    """The layer takes (N, C) exactly when the facts say so."""
    layer = subject.layer(C)
    error = refusal(layer, torch.randn(C, 6) if subject.on_weights else torch.randn(6, C))
    assert (error is None) == subject.layer.facts.dense, error
    if error is not None:
        assert_helpful(error, received="(6, 8)")


def test_every_bug_is_tried_by_a_law() -> None:
    """A bug whose law does not exist would never run."""
    assert {bug.law for bug in BUGS} <= law_names()
