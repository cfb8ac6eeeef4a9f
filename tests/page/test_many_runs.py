"""A page of many runs leaves details out, says so, and stays small."""

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from events import Events, resnet_run, small_run, unpacked

from normzoo.page import report
from normzoo.page.many_runs import MANY, STEPS_OF_MANY


def runs_in(page: Path) -> list[Any]:
    """The runs in a report."""
    found = re.findall(r'<script type="text/plain" data-run=".*?">(.*?)</script>', page.read_text())
    return [unpacked(base64.b64decode(text)) for text in found]


def copies(folder: Path, count: int) -> Path:
    """A folder of so many runs, which are one."""
    for i in range(1, count):
        shutil.copytree(folder / "000", folder / f"{i:03d}")
    return folder


@pytest.mark.parametrize("count", [MANY, MANY + 1])
def test_a_page_of_more_than_12_runs_has_no_details(count: int, tmp_path: Path) -> None:
    small_run(tmp_path / "logs/000", steps=120)
    Events(tmp_path / "logs/000").table(5, "channels/net.0", [[1.0]], ["0"], ["gamma"])
    Events(tmp_path / "logs/000").table(
        5, "normalization/X/histogram", [[1.0] * 3], ["net.0"], ["low", "high", "bin_0"]
    )
    run = runs_in(report(copies(tmp_path / "logs", count), tmp_path / "report.html"))[0]
    table = run["tables"]["GradientFlow"]
    many = count > MANY
    assert len(table["steps"]) == len(table["values"]) == (STEPS_OF_MANY if many else 120)
    assert [table["steps"][0], table["steps"][-1]] == [0, 119]
    assert [values[0][0] for values in table["values"]] == pytest.approx(
        [100 * step for step in table["steps"]], rel=1e-3
    )
    assert (run["channels"] == {}, run["histograms"] == {}, run.get("left_out", False)) == (many, many, many)


@pytest.mark.slow
def test_60_runs_of_resnet8_take_less_than_5_megabytes(tmp_path: Path) -> None:
    resnet_run(tmp_path / "logs/000", details=20, depth=8)
    page = report(copies(tmp_path / "logs", 60), tmp_path / "report.html")
    assert page.stat().st_size < 5e6
    assert len(runs_in(page)[59]["tables"]["CovariateShift"]["steps"]) == STEPS_OF_MANY
