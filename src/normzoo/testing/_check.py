"""`check_norm`: the laws for a layer of one's own, with a review of what does not hold."""

import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from normzoo.errors import InputError
from normzoo.norms._arguments import is_count
from normzoo.testing import arguments, evaluation, facts, formats, gradients, numerics, shapes, state, transforms
from normzoo.testing._law import OBSERVERS, Finding, Law, laws_of
from normzoo.testing._own import Own
from normzoo.testing._subject import LAYOUTS
from normzoo.testing._suggest import suggested_facts

MODULES = (shapes, formats, state, evaluation, arguments, gradients, numerics, facts, transforms)
LAWS = [law for module in MODULES for law in laws_of(module)]
FIRST, FACTS = LAWS[0], [*laws_of(facts)]
NAMES = {"NC": "(N, C)", "NCL": "(N, C, L)", "NCHW": "(N, C, H, W)"}


@dataclass
class Remark:
    """A law that does not hold, where, and whether the layer has to obey it."""

    law: Law
    line: str
    error: Exception
    binding: bool
    layouts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        found = self.error if isinstance(self.error, Finding) else Finding(self.summary())
        first, _, others = found.observed.partition(" ")
        observed = f"{first[0].upper() + first[1:] if first.isalpha() else first} {others}."
        lines = [
            f"       {self.line}{found.tried or self.law.tried}",
            paragraph(found.means or self.law.means),
            paragraph(found.remedy or self.law.remedy),
        ]
        place = f"   (law {self.law.name}; with {', '.join(NAMES[layout] for layout in self.layouts)})"
        return "\n".join([paragraph(observed).lstrip(), *(lines if self.binding else lines[1:]), place])

    def summary(self) -> str:
        """What the law says, and the first line of an error that is not a finding."""
        text = first_line(self.error)
        if isinstance(self.error, AssertionError):
            return f"{self.law.observed} ({text})"
        return f"the layer raises {type(self.error).__name__}: {text}"


@dataclass(frozen=True)
class Review:
    """What `check_norm` found: `print` shows it.

    Args:
        layer: the layer's name.
        layouts: those with which the laws were tried.
        held: how many laws hold.
        findings: laws that the layer has to obey, and does not.
        suggestions: laws that would be good to obey, and what its facts could say.
    """

    layer: str
    layouts: tuple[str, ...]
    held: int
    findings: tuple[Remark, ...]
    suggestions: tuple[Remark | str, ...]

    def __str__(self) -> str:
        places = ", ".join(NAMES[layout] for layout in self.layouts)
        counts = [f"{len(self.findings)} to fix"] * bool(self.findings) + [f"{self.held} laws hold"]
        head = f"check_norm({self.layer}): {', '.join(counts)}; tried with {places or 'no input'}."
        parts = [head, *numbered(self.findings)]
        if self.suggestions and not self.findings:
            parts += ["Suggestions, which no test needs:", *numbered(self.suggestions)]
        return "\n\n".join(parts)


def first_line(error: Exception) -> str:
    """The first line of a message, shortened, without the dot."""
    return textwrap.shorten(str(error).partition("\n")[0], 200, placeholder=" ...").rstrip(".! ")


def paragraph(text: str) -> str:
    """Indented as what belongs to a number is."""
    return textwrap.fill(text, 100, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False)


def numbered(remarks: tuple[Remark | str, ...]) -> list[str]:
    return [f"{i}. {remark}" for i, remark in enumerate(remarks, 1)]


def check_norm(layer: Callable[..., nn.Module], *, num_features: int = 8, **arguments: Any) -> Review:
    """Tries the laws of the zoo on a normalization layer, and raises a review of those that do not hold.

    Args:
        layer: a class derived from `normzoo.norms.Norm`; or any class, or function of `num_features`, that builds a
            module, for which only the layouts are tried that it takes.
        num_features: number of channels C to build it with.
        arguments: further arguments of the layer. Facts are those of the default arguments: with others, as for a
            layer that states no facts, the laws about facts are not tried.

    Returns:
        What was tried, and suggestions; `print` shows them.

    Raises:
        AssertionError: a law does not hold. `exceptions` in the layer's facts may name it, with the reason.
        InputError: `layer` does not build a module; `num_features` is no integer of at least 1.

    >>> from normzoo.norms import GroupNorm
    >>> print(check_norm(GroupNorm))
    check_norm(GroupNorm): 129 laws hold; tried with (N, C), (N, C, L), (N, C, H, W).
    """
    name = getattr(layer, "__name__", "<>")
    name = "build" if "<" in name else name  # a lambda, or a partial
    require_layer(layer, name, num_features, arguments)
    build = partial(layer, **arguments) if arguments else layer
    subjects = [Own(build, layout, name, num_features, arguments) for layout in LAYOUTS]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what some laws try
        review = reviewed([subject for subject in subjects if subject.meaningful])
    if review.findings:
        raise AssertionError(str(review))
    return review


def require_layer(layer: object, name: str, num_features: int, arguments: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the layer can be built."""
    if not is_count(num_features):
        raise InputError(
            f"check_norm(num_features={num_features!r}): num_features must be an integer of at least 1; the default is "
            f"8 channels."
        )
    if isinstance(layer, nn.Module) or not callable(layer):
        raise InputError(
            f"check_norm got {type(layer).__name__}, an object; give the class itself, or a function of the number of "
            f"channels that builds it: check_norm(MyNorm)."
        )
    try:
        built = layer(num_features, **arguments)
    except Exception as error:
        raise InputError(
            f"{name}({num_features}) raises {type(error).__name__}: {first_line(error)}. Give what it needs: "
            f"check_norm({name}, num_features=..., other_argument=...)."
        ) from error
    if not isinstance(built, nn.Module):
        raise InputError(f"{name}({num_features}) is {type(built).__name__}; give what builds a module.")


def reviewed(subjects: list[Own]) -> Review:
    """Tries all laws in the layouts that the layer takes."""
    remarks: dict[str, Remark] = {}
    taken = []
    for subject in subjects:
        error = failure(FIRST, subject)
        if error is None:
            taken.append(subject)
        elif subject.is_norm or isinstance(error, Finding):
            note(remarks, FIRST, subject, error if isinstance(error, Finding) else refused(subject, error))
    if not taken and not remarks:  # a module that takes nothing
        note(remarks, FIRST, subjects[-1], refused(subjects[-1], failure(FIRST, subjects[-1])))
    for remark in remarks.values():
        remark.binding = not taken or subjects[0].is_norm  # a module may be for images alone
    tried = [(law, subject) for subject in taken for law in LAWS[1:] if applies(law, subject, taken)]
    errors = [(law, subject, error) for law, subject in tried if (error := failure(law, subject))]
    failed = {law.name for law, _, _ in errors}
    for law, subject, error in errors:
        if not failed & set(law.explained_by):
            note(remarks, law, subject, error)
    return Review(
        subjects[0].name,
        tuple(subject.layout for subject in taken),
        len(tried) - len(errors),
        tuple(remark for remark in remarks.values() if remark.binding),
        (*(remark for remark in remarks.values() if not remark.binding), *suggested_facts(taken)),
    )


def applies(law: Law, subject: Own, taken: list[Own]) -> bool:
    """Whether a law is about a layer in this layout."""
    if not subject.declares and (law in FACTS or law.check.__name__ in OBSERVERS):
        return False
    if law.name in subject.facts.exceptions or (law.redraws and subject.facts.random):
        return False
    place = {"every layout": True, "images": subject.layout == "NCHW", "once": subject is taken[-1]}
    return place[law.where] and law.when(subject)


def failure(law: Law, subject: Own) -> Exception | None:
    """The error with which a law does not hold."""
    torch.manual_seed(0)
    try:
        law(subject)
    except Exception as error:
        # What torch lacks: a kernel for narrow dtypes on this device, autocast on the meta device.
        lacks = "not implemented for '(BFloat16|Half)'|unsupported (autocast|scalarType)"
        return None if re.search(lacks, str(error)) else error
    return None


def refused(subject: Own, error: Exception | None) -> Finding:
    """What to say of a layer that does not take an input at all."""
    found = f"{type(error).__name__}: {first_line(error)}" if error else ""
    remedy, means = "", ""
    if not subject.is_norm:
        means = "It takes none of the inputs (N, C), (N, C, L) and (N, C, H, W), which check_norm tries."
        remedy = "Give a layer that takes one of them, and num_features=C as it needs it."
    if subject.layout == "NC" and subject.is_norm:
        remedy = (
            "Take inputs without positions, too; or state in the class facts = Facts(dense=False, ...): then an MLP "
            "refuses the layer with a message."
        )
    return Finding(f"an input of shape {subject.shape()} raises {found}", "", remedy, means)


def note(remarks: dict[str, Remark], law: Law, subject: Own, error: Exception) -> None:
    """Adds what was found, once for all layouts."""
    binding = {"all": True, "norms": subject.is_norm, "zoo": subject.of_zoo}[law.binds]
    line = f"layer, x = {subject}, torch.randn{subject.shape()}; "
    remark = remarks.setdefault(law.name, Remark(law, line, error, binding))
    remark.layouts.append(subject.layout)
