"""Arguments, documentation and error messages."""

import inspect
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import torch
from broken import BUGS
from laws import assert_close, assert_helpful, law, law_names
from references import OUT_OF_RANGE
from references.starts import start
from subjects import C, Subject, arguments_of
from torch import Tensor

from normzoo import testing
from normzoo.errors import InputError
from normzoo.norms._arguments import keyword_defaults


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
def test_ranges_are_tested(subject: Subject) -> None:
    """Every number that a layer takes has values out of its range, and the laws know some."""
    defaults = keyword_defaults(subject.layer)
    numbers = {n for n, v in defaults.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    assert numbers <= set(OUT_OF_RANGE), "add values out of range to tests/helpers/references/arguments.py"


def test_every_bug_is_tried_by_a_law() -> None:
    """A bug whose law does not exist would never run."""
    assert {bug.law for bug in BUGS} <= law_names()


def test_every_law_is_tried_on_the_zoo_and_by_check_norm() -> None:
    """Each module of laws is among those of `check_norm`, and a file of tests here."""
    modules = {file.stem for file in Path(testing.__file__).parent.glob("[!_]*.py")}
    assert {law.check.__module__.rpartition(".")[2] for law in testing.LAWS} == modules
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert all(f"tests_of({module})" in text for module in modules)
