"""What a law is: a function of a subject that raises an `AssertionError` if the layer does not obey."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import update_wrapper
from types import ModuleType
from typing import Literal

from normzoo.testing._subject import Subject

Where = Literal["every layout", "images", "once"]
Whom = Literal["all", "norms", "zoo"]


class Finding(AssertionError):
    """A law that does not hold: what was observed, and a line that shows it.

    Args:
        observed: what the layer does, in one sentence.
        tried: Python that shows it, in one line; "" for the line of the law.
        remedy: what to do about it; "" for the remedy of the law.
        means: what that means for training; "" for what the law says.
    """

    def __init__(self, observed: str, tried: str = "", remedy: str = "", means: str = "") -> None:
        super().__init__(observed)
        self.observed, self.tried, self.remedy, self.means = observed, tried, remedy, means


def expect(holds: object, observed: str, tried: str = "", remedy: str = "", means: str = "") -> None:
    """Raises a `Finding` unless what is expected holds."""
    if not holds:
        raise Finding(observed, tried, remedy, means)


REMEDY = r"\b(use|take|build|give|convert|call|lower|raise|move|need|default|defaults|divisors|choose|pass)\b"


def assert_helpful(error: Exception, received: str) -> None:
    """Raises unless the message names what was received, and a remedy."""
    message = str(error)
    expect(received in message, f"the message lacks what was received, {received}: {message}")
    expect(re.search(REMEDY, message), f"the message lacks a remedy: {message}")


@dataclass(frozen=True)
class Law:
    """A property that layers have.

    Args:
        check: raises if the layer of a subject lacks the property.
        when: the subjects that the law is about, by their facts.
        where: in every layout; with images alone; or once, as it does not depend on the layout.
        observed: what a layer does that lacks the property, where an error of the check does not say it.
        tried: Python that shows it, of `layer` and `x`.
        means: what that means for training.
        remedy: what to do about it.
        binds: all layers; subclasses of `Norm`; or those of the zoo. To others `check_norm` suggests it.
        redraws: compares passes that may draw other random numbers, as in another dtype or memory format.
        explained_by: laws whose failure explains that of this one.
    """

    check: Callable[[Subject], None]
    when: Callable[[Subject], bool]
    where: Where
    observed: str
    tried: str
    means: str
    remedy: str
    binds: Whom
    redraws: bool
    explained_by: tuple[str, ...]

    @property
    def name(self) -> str:
        """As `facts.exceptions` writes it."""
        return self.check.__name__.replace("_", "-")

    def __call__(self, subject: Subject) -> None:
        self.check(subject)


def law(
    *,
    when: Callable[[Subject], bool] = lambda subject: True,
    where: Where = "every layout",
    observed: str,
    tried: str = "layer(x)",
    means: str,
    remedy: str,
    binds: Whom = "all",
    redraws: bool = False,
    explained_by: tuple[str, ...] = (),
) -> Callable[[Callable[[Subject], None]], Law]:
    """Makes a law of a function of a subject; see `Law`."""
    return lambda check: Law(check, when, where, observed, tried, means, remedy, binds, redraws, explained_by)


def laws_of(module: ModuleType) -> Iterator[Law]:
    """The laws that a module defines."""
    yield from (value for value in vars(module).values() if isinstance(value, Law))


Observer = Callable[[Subject], bool]


def fact(
    *,
    does: str,
    tried: str,
    means: str,
    when: Callable[[Subject], bool] = lambda subject: True,
    where: Where = "every layout",
) -> Callable[[Observer], Law]:
    """Makes a law of a function that observes whether a fact is true, under the fact's name.

    Args:
        does: what the layer does if the fact is true, after "the layer".
        tried: Python that shows it.
        means: what is built on the fact.
        when, where: as those of `Law`.
    """

    def of_observer(observe: Observer) -> Law:
        name = observe.__name__

        def check(subject: Subject) -> None:
            declared, observed = getattr(subject.declared, name), observe(subject)
            expect(
                observed == declared,
                f"the layer {does}, and its facts do not say so"
                if observed
                else f"its facts say {name}={declared}: that the layer {does}; it does not",
                remedy=f"facts = Facts({name}={observed}, ...), or the formula is not the one that was meant.",
            )

        update_wrapper(check, observe)
        OBSERVERS[name] = observe
        declare = law(
            when=when,
            where=where,
            observed=f"the fact {name} is wrong",
            tried=tried,
            means=means,
            remedy=f"facts = Facts({name}=...)",
        )
        return declare(check)

    return of_observer


OBSERVERS: dict[str, Observer] = {}
