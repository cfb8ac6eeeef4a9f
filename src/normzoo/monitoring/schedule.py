"""When a monitor samples: any function of the optimizer step, and the usual ones."""

import math
from collections.abc import Callable

from normzoo.errors import InputError

Schedule = Callable[[int], bool]
"""Whether to sample at a step: the number of optimizer steps that have been made. The same on all ranks."""


class Every:
    """Every so many steps, from step 0 on.

    Args:
        steps: the distance of two samples, in optimizer steps.
        start: the first sample's step.

    Raises:
        InputError: a distance below 1.
    """

    def __init__(self, steps: int, start: int = 0) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"every={steps!r}: a monitor samples every so many steps, at least 1; 50 is common.")
        self.steps = steps
        self.start = start

    def __call__(self, step: int) -> bool:
        return step >= self.start and (step - self.start) % self.steps == 0

    def __repr__(self) -> str:
        return f"Every({self.steps})" if self.start == 0 else f"Every({self.steps}, start={self.start})"


class Logarithmic:
    """Densely at first, and ever more rarely: at step 0 and as often in steps 1 to 10 as in 10 to 100.

    Args:
        per_decade: samples for every tenfold number of steps.

    Raises:
        InputError: fewer than one sample per decade.
    """

    def __init__(self, per_decade: int = 20) -> None:
        if isinstance(per_decade, bool) or not isinstance(per_decade, int) or per_decade < 1:
            raise InputError(f"Logarithmic(per_decade={per_decade!r}): it is at least 1; 20 is common.")
        self.per_decade = per_decade

    def __call__(self, step: int) -> bool:
        if step < 2:
            return True
        place = math.log10(step) * self.per_decade
        return math.floor(place) > math.floor(math.log10(step - 1) * self.per_decade)

    def __repr__(self) -> str:
        return f"Logarithmic({self.per_decade})"


class Unlimited:
    """For a run of unknown length: every so many steps, and before that ever more rarely.

    >>> [step for step in range(2000) if Unlimited(1000)(step)]
    [0, 1, 2, 4, 6, 10, 18, 32, 57, 100, 178, 317, 563, 1000]

    Args:
        steps: the distance of two samples, in optimizer steps.
    """

    def __init__(self, steps: int) -> None:
        self.usual, self.first = Every(steps), Logarithmic(4)

    def __call__(self, step: int) -> bool:
        return self.usual(step) or (step < self.usual.steps and self.first(step))


def as_schedule(every: int | Schedule) -> Schedule:
    """The schedule of a number of steps, or of a function."""
    if callable(every):
        return every
    return Every(every)
