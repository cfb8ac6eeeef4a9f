"""`check_norm`: finds what strangers do wrong, says nothing of what they do right, and leaves no trace."""

import copy
import inspect
import re
import warnings
from collections.abc import Iterable

import pytest
import torch
from broken import BUGS, Bug
from strangers import MISTAKES, RIGHT, Rms
from torch import nn

from normzoo.errors import InputError
from normzoo.norms import BatchNorm, GroupNorm, RMSNorm, layers
from normzoo.testing import LAWS, check_norm

ALL = layers()


def some(names: Iterable[str], *fast: str) -> list[object]:
    """Names as parameters of pytest, of which all but a few are slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def review_of(layer: type[nn.Module], **arguments: object) -> str:
    with pytest.raises(AssertionError) as raised:
        check_norm(layer, **arguments)
    return str(raised.value)


def laws_named(review: str) -> list[str]:
    """The laws of the findings, without the suggestions."""
    return re.findall(r"\(law ([\w-]+);", review.partition("\nSuggestions:")[0])


@pytest.mark.parametrize("name", some(ALL, "WeightNorm"))
def test_the_zoo_passes(name: str) -> None:
    """With no suggestion: its facts say all that is observed."""
    assert check_norm(ALL[name]).suggestions == ()


BY_NAME = {law.name: law for law in LAWS}
# Bugs that the default arguments do not show.
ARGUMENTS = {"ErrorInTheLastPart": {"ghost_size": 3}, "RuleOfWhatMoves": {"warmup": 0, "r_steps": 0, "d_steps": 0}}


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.law in BY_NAME], ids=lambda bug: bug.layer.__name__)
def test_planted_bugs_are_found(bug: Bug) -> None:
    """The review of a broken layer names the law that catches it, or one that explains it."""
    found = laws_named(review_of(bug.layer, **ARGUMENTS.get(bug.layer.__name__, {})))
    assert {bug.law, *BY_NAME[bug.law].explained_by, "forward-pass"} & set(found)


@pytest.mark.parametrize("name", some(MISTAKES, "KeepsTheGraph", "WritesIntoItsInput", "WeightForImages", "Promotes"))
def test_mistakes_are_found(name: str) -> None:
    """The review names the law, and few others. The lines to paste run, or raise what the finding says."""
    layer, law = MISTAKES[name]
    review = review_of(layer)
    found = laws_named(review)
    assert law in found
    assert len(found) <= 2
    lines = re.findall(r"^ {7}(layer, x = .*)$", review, re.MULTILINE)
    assert lines
    for line in lines:
        error = error_of(line, {"torch": torch, "copy": copy, "inspect": inspect, layer.__name__: layer})
        assert type(error).__name__ in ("NoneType", "GradcheckError") or type(error).__name__ in review, line


def error_of(line: str, names: dict[str, object]) -> Exception | None:
    """What a line of Python raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(line, names)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", some(RIGHT, "Llama", "LayerNorm2d", "BatchNorm2d"))
def test_layers_that_are_right_raise_nothing(name: str) -> None:
    """However they are written, if not as in the zoo."""
    assert check_norm(RIGHT[name]).held > 20


@pytest.mark.slow
def test_suggested_facts_hold() -> None:
    """What the review suggests may be pasted into the class: then all laws about facts are tried, and hold."""
    review = check_norm(Rms)
    [suggestion] = [s for s in review.suggestions if "Facts(" in str(s)]
    stated = type(
        "Stated", (Rms,), {"facts": eval(str(suggestion).partition("facts = ")[2], vars(inspect.getmodule(Rms)))}
    )
    assert stated.facts.axes == ("C",)
    assert stated.facts.scales
    assert check_norm(stated).held > review.held


def test_it_leaves_no_trace() -> None:
    """Random numbers, threads and the default dtype are as before."""
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    check_norm(RMSNorm)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]


@pytest.mark.slow
def test_arguments_are_those_of_the_layer() -> None:
    assert "C, H, W" in str(check_norm(GroupNorm, num_features=12, num_groups=3))
    with pytest.raises(AssertionError, match=r"BatchNorm\(8, eps=0\)"):
        check_norm(BatchNorm, eps=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check_norm(RMSNorm(8)), "give the class itself"),
        (lambda: check_norm(RMSNorm, num_features=0), "num_features=0"),
        (lambda: check_norm(lambda c: c), "is int"),
    ],
)
def test_wrong_calls(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
