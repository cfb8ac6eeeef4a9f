"""A long training holds at its end what it held at its beginning: `scripts/bench soak`, judged."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "scripts" / "benches" / "soak.py"
MOST_MEGABYTES = 4.0
"""By which the memory may grow after the first tenth: its pages and TensorBoard's queue come and go."""

Row = tuple[int, float, int, int]
"""Steps, megabytes, open files, threads."""


def rows_of(said: str) -> list[Row]:
    """The table that the bench prints."""
    lines = [line.replace(",", "").split() for line in said.splitlines() if re.match(r" +\d", line)]
    return [(int(steps), float(memory), int(files), int(threads)) for steps, memory, files, threads, _ in lines]


def leaks(rows: list[Row]) -> list[str]:
    """What grew, from the first row on."""
    _, memory, files, threads = zip(*rows, strict=True)
    found = []
    if max(memory) - memory[0] > MOST_MEGABYTES:
        found.append(f"memory, from {memory[0]} to {max(memory)} MiB")
    for name, counts in (("files", files), ("threads", threads)):
        if counts[-1] > counts[0] or max(counts) > counts[0] + 1:  # one may be open just then
            found.append(f"{name}: {counts}")
    return found


@pytest.mark.slow
def test_twenty_thousand_steps_hold_no_more_than_two_thousand() -> None:
    command = [sys.executable, str(SOAK), "--steps=20000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert [steps for steps, *_ in rows] == list(range(2_000, 20_001, 2_000))
    assert leaks(rows) == [], done.stdout


def test_a_leak_is_seen() -> None:
    flat = [(steps, 800.0 + steps % 3, 7, 3) for steps in range(1, 11)]
    assert leaks(flat) == []
    assert leaks([(s, m + 0.6 * s, f, t) for s, m, f, t in flat])
    assert leaks([(s, m, f + s, t) for s, m, f, t in flat])
    assert leaks([(s, m, f, t + s // 10) for s, m, f, t in flat])
