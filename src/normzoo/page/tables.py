"""Tables of a run over its steps: `[layers, metrics]` at each, whose rows may change."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOST_STEPS = 200

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Names:
    """The rows and columns of a table.

    Args:
        layers: names of the rows.
        metrics: names of the columns.
        units: of each column.
    """

    layers: tuple[str, ...]
    metrics: tuple[str, ...]
    units: tuple[str, ...]

    @classmethod
    def parse(cls, content: bytes) -> "Names":
        """The names in the first record of a table.

        Raises:
            ValueError: it is something else.
        """
        found = json.loads(content)
        if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in ("layers", "metrics")):
            raise ValueError("no names of rows and columns")
        layers, metrics, units = (tuple(map(str, found.get(key) or ())) for key in ("layers", "metrics", "units"))
        return cls(layers, metrics, (*units, *[""] * len(metrics))[: len(metrics)])

    def union(self, later: "Names") -> "Names":
        """The rows and columns of both, a new one behind the one that it follows."""
        units = {
            **dict(zip(later.metrics, later.units, strict=True)),
            **dict(zip(self.metrics, self.units, strict=True)),
        }
        metrics = joined(self.metrics, later.metrics)
        return Names(joined(self.layers, later.layers), metrics, tuple(units[metric] for metric in metrics))


def joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Two lists of names as one, in the order of both."""
    names, place = list(first), len(first) if set(first).isdisjoint(second) else 0
    for name in second:
        if name in names:
            place = names.index(name) + 1
        else:
            names.insert(place, name)
            place += 1
    return tuple(names)


@dataclass
class Table:
    """A table at several steps.

    Args:
        steps: S steps, ascending.
        names: of its L rows and M columns.
        values: (S, L, M); NaN where there is no value.
    """

    steps: list[int]
    names: Names
    values: Values

    def thinned(self, most: int = MOST_STEPS) -> "Table":
        """At most so many steps, evenly spread: the first, the last, and between them those with the most values."""
        known = np.count_nonzero(~np.isnan(self.values), axis=(1, 2))
        kept = spread(len(self.steps), most, known.tolist())
        return Table([self.steps[i] for i in kept], self.names, self.values[kept])


def spread(count: int, most: int, weights: Sequence[int]) -> list[int]:
    """At most so many of `count` places, evenly: the first, the last, and the heaviest of each part between them."""
    if count <= most:
        return list(range(count))
    bounds = np.linspace(1, count - 1, most - 1).round().astype(int).tolist()
    return [0, *(max(range(*part), key=weights.__getitem__) for part in pairwise(bounds)), count - 1]


@dataclass
class Series:
    """The records of a table, as they are read.

    Args:
        records: step -> the names and values at that step.
    """

    records: dict[int, tuple[Names, Values]] = field(default_factory=dict)

    def add(self, step: int, names: Names, values: Values) -> None:
        """Adds a record. A value that is not NaN replaces one that the step has already."""
        if step in self.records:
            earlier = self.records[step]
            both = combined([earlier[0], names])
            before, after = placed(both, *earlier), placed(both, names, values)
            names, values = both, np.where(np.isnan(after), before, after)
        self.records[step] = (names, values)

    def drop_from(self, step: int) -> None:
        """Forgets a step and all after it."""
        self.records = {number: record for number, record in self.records.items() if number < step}

    def table(self) -> Table:
        """All records as one table."""
        steps = sorted(self.records)
        names = combined([self.records[step][0] for step in steps])
        values = [placed(names, *self.records[step]) for step in steps]
        shape = (len(steps), len(names.layers), len(names.metrics))
        return Table(steps, names, np.stack(values) if values else np.empty(shape, np.float32))


def combined(names: Sequence[Names]) -> Names:
    """The rows and columns of all."""
    different = list(dict.fromkeys(names))
    return reduce(Names.union, different, different[0])


def placed(into: Names, names: Names, values: Values) -> Values:
    """Values (L, M) in the rows and columns of a larger table."""
    if into == names:
        return values
    whole = np.full((len(into.layers), len(into.metrics)), np.nan, np.float32)
    rows, columns = [into.layers.index(one) for one in names.layers], [into.metrics.index(one) for one in names.metrics]
    whole[np.ix_(rows, columns)] = values
    return whole
