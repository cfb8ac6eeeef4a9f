"""The laws of normalization layers, as pytest parameters, and what the tests in `tests/norms` share.

Most laws lie in `normzoo.testing`, for layers that are not in the zoo, too; those that need a reference, ranks or an
exporter are tests. A law has a parameter `subject`: every class of `normzoo.norms.layers()` in every layout, `(N, C)`,
`(N, C, L)` and `(N, C, H, W)`. A law names no layer: it reads facts, and where a fact can be false the law is
two-sided, observed == declared. A new layer needs its formula in `references/`, and no test is edited. An exception
that the facts declare is a strict xfail; so is each layer of `broken.py`, which has one bug that the law must catch.

A layer that acts on a weight (C, I, *) has the same laws: its output channels are the samples N, and all other axes are
positions s.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from broken import BUGS
from subjects import Subject, subjects

from normzoo.testing import LAWS
from normzoo.testing._compare import assert_close as assert_close
from normzoo.testing._compare import assert_same_buffers as assert_same_buffers
from normzoo.testing._compare import assert_same_results as assert_same_results
from normzoo.testing._compare import buffers_of as buffers_of
from normzoo.testing._compare import close as close
from normzoo.testing._compare import fresh as fresh
from normzoo.testing._compare import of_layer as of_layer
from normzoo.testing._compare import refusal as refusal
from normzoo.testing._compare import same_tensors as same_tensors
from normzoo.testing._law import Law, laws_of
from normzoo.testing._law import assert_helpful as assert_helpful
from normzoo.testing._subject import LARGE as LARGE
from normzoo.testing._subject import few_and_many as few_and_many
from normzoo.testing._subject import on_activations as on_activations

# What a law fails with: a claim that is wrong, or an error of torch.
FAILURES = (AssertionError, RuntimeError)

TESTS = Path(__file__).parents[1] / "norms"


def law_names() -> set[str]:
    """The names of all laws, as `facts.exceptions` and `broken.py` write them."""
    text = "".join(file.read_text() for file in TESTS.glob("test_*.py"))
    tests = {name.replace("_", "-") for name in re.findall(r"@law\(.*\)\ndef test_(\w+)\(", text)}
    return tests | {law.name for law in LAWS}


def tests_of(module: ModuleType) -> dict[str, Callable[..., None]]:
    """A test of the zoo for each law of a module of `normzoo.testing`, by its name."""
    return {f"test_{law.check.__name__}": law_test(law) for law in laws_of(module)}


def law_test(one: Law) -> Callable[..., None]:
    """A test of a law, for every subject."""

    def test(subject: Subject) -> None:
        one(subject)

    test.__name__ = f"test_{one.check.__name__}"
    where = {"every layout": one.when, "once": one.when, "images": lambda s: on_images(s) and one.when(s)}
    return law(when=where[one.where], per_class=one.where == "once")(test)


tests_of.__test__ = False  # pytest takes them for tests


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


def on_images(subject: Subject) -> bool:
    return subject.layout == "NCHW"


def on_vectors_or_images(subject: Subject) -> bool:
    """Not (N, C, L), for laws that take seconds: it has positions, as images have."""
    return subject.layout != "NCL"
