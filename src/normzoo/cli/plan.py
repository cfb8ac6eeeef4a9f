"""Plans a grid: parses the settings of each cell, builds its network, and makes its folder, before anything trains."""

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.progress import track

from normzoo.cli.fit import CLI
from normzoo.compare.grid import Grid, other_settings
from normzoo.compare.settings import Cell, flags, shown
from normzoo.errors import InputError
from normzoo.monitoring.layers import norm_name
from normzoo.page.run_data import norm_of
from normzoo.runs import contradictions
from normzoo.runs.atomic import written_whole
from normzoo.runs.folders import CONFIG
from normzoo.runs.state import FAILED

PLACE = ("runs", "experiment", "ckpt_path", "config", "change")
"""Settings that say where a run lies and begins, not what it is."""


class Built(Exception):
    """Ends a command once data and network are built."""


class Plan(CLI):
    """The complete configuration of a run, and whether its network can be built.

    Args:
        arguments: of `normzoo fit`.

    Attributes:
        refusal: why data or network cannot be built; None if they can.
        plain: the configuration, as a run's config.yaml has it.
        norm: the class of the network's norms.

    Raises:
        InputError: the arguments cannot be parsed.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # a line for each cell
        self.refusal: InputError | None = None
        self.parsed = False
        try:
            super().__init__(["fit", *arguments])
        except Built:
            self.norm = norm_name(self.model)
        except InputError as error:
            if not self.parsed:
                raise
            self.refusal = error
            self.norm = norm_of(self.plain)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        self.plain = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))[self.command]
        self.parsed = True

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        raise Built


def plan(grid: Grid, wanted: Sequence[Cell]) -> list[str]:
    """Makes the folders of the cells that a grid lacks; returns those of all that are wanted, in order.

    Raises:
        InputError: a setting is no flag. Then nothing is written.
    """
    missing = [cell for cell in wanted if grid.name_of(cell) is None]
    arms: dict[str, Arm] = {}
    for cell in shown_progress(missing):
        if (key := without_seed(cell)) not in arms:
            arms[key] = Arm.planned([*grid.command, *flags(cell)])
    grid.save()
    for cell in missing:
        arm = arms[without_seed(cell)]
        seed = cell.get("seed", arm.config["seed_everything"])
        name = grid.add(cell, f"{arm.norm}-{seed}", {**arm.config, "seed_everything": seed})
        if arm.refusal:
            with written_whole(grid.folder / name / FAILED) as file:
                file.write(f"{arm.refusal}\n".encode())
    grid.save()
    return [name for name in map(grid.name_of, wanted) if name]


class Arm(NamedTuple):
    """What all seeds of a setting share.

    Args:
        config: the configuration.
        norm: the class of the network's norms.
        refusal: why the network cannot be built; None if it can.
    """

    config: dict[str, Any]
    norm: str
    refusal: InputError | None

    @classmethod
    def planned(cls, arguments: Sequence[str]) -> "Arm":
        """That of some arguments of `normzoo fit`."""
        found = Plan(arguments)
        return cls(found.plain, found.norm, found.refusal)


def without_seed(cell: Cell) -> str:
    """The settings of a cell but the seed, as a key."""
    return json.dumps({key: value for key, value in cell.items() if key != "seed"}, sort_keys=True)


def shown_progress(missing: Sequence[Cell]) -> Iterable[Cell]:
    """The cells, with a progress bar where there are many."""
    console = Console(stderr=True)
    return track(missing, "planning", console=console, transient=True, disable=len(missing) < 10) if missing else ()


def require_same(grid: Grid, wanted: Sequence[Cell]) -> None:
    """Raises `InputError` if a run of the grid has another configuration than the arguments give it now."""
    cell = next((cell for cell in wanted if grid.name_of(cell)), None)
    if cell is None:
        return
    folder = grid.folder / str(grid.name_of(cell))
    saved: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    asked = Plan([*grid.command, *flags(cell)]).plain
    found = contradictions.differences(saved, asked, [key for key in asked if key not in PLACE])
    if found:
        raise other_settings(
            grid.folder, (f"{key} is {shown(a)} there, {shown(b)} now" for key, (a, b) in found.items())
        )
