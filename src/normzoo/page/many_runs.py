"""What a page of many runs leaves out, so that it stays small."""

from collections.abc import Mapping
from typing import Any

from normzoo.page.tables import spread

Data = dict[str, Any]

MANY = 12
"""Runs of which a page has everything: it shows as many until one chooses."""
STEPS_OF_MANY = 50


def without_details(run: Mapping[str, Any]) -> Data:
    """A run as a page of more than 12 runs has it: no histograms, no channels, 50 steps of each table.

    Args:
        run: as `run_data` returns it.
    """
    tables = {monitor: thinned(table) for monitor, table in run["tables"].items()}
    return {**run, "tables": tables, "histograms": {}, "channels": {}, "left_out": True}


def thinned(table: Mapping[str, Any]) -> Data:
    """At most 50 steps of a table: the first, the last, and an even choice between them."""
    kept = spread(len(table["steps"]), STEPS_OF_MANY, [1] * len(table["steps"]))
    return {**table, "steps": [table["steps"][i] for i in kept], "values": table["values"][kept]}
