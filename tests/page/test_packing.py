"""The numbers in a report keep three or four digits, infinity and NaN, and take little space."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from events import unpacked

from normzoo.page.bundle import html_page
from normzoo.page.packing import packed


def there_and_back(part: str, values: Any) -> Any:
    return unpacked(packed({part: {"a": {"values": np.asarray(values)}}}))[part]["a"]["values"]


@pytest.mark.parametrize("part,digits", [("tables", 4), ("channels", 3)])
def test_numbers_keep_their_digits_over_the_whole_range(part: str, digits: int) -> None:
    random = np.random.default_rng(0)
    values = (random.normal(size=(50, 4, 3)) * 10.0 ** random.uniform(-30, 37, (50, 4, 3))).astype(np.float32)
    np.testing.assert_allclose(there_and_back(part, values), values, rtol=10.0**-digits / 1.5)


def test_counts_below_two_thousand_are_exact() -> None:
    counts = np.random.default_rng(0).integers(0, 2049, (20, 3, 64)).astype(np.float32)
    assert there_and_back("histograms", counts) == counts.tolist()


@pytest.mark.parametrize("part", ["tables", "channels"])
def test_what_is_no_number_is_kept(part: str) -> None:
    values = np.array([[0.0, np.nan, np.inf], [-0.0, -np.inf, np.nan], [1, -np.nan, 3e38]], np.float32)
    values[2, 1] = np.int32(-1).view(np.float32)  # NaN with every bit set
    found = there_and_back(part, values)
    assert found[0] == [0.0, None, np.inf]
    assert found[1] == [0.0, -np.inf, None]
    assert found[2][1] is None


@pytest.mark.parametrize("shape", [(0,), (3,), (0, 2, 4), (3, 0, 4), (1, 2, 3)])
def test_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    assert there_and_back("tables", np.zeros(shape)) == np.zeros(shape).tolist()


def test_everything_else_is_plain() -> None:
    run = {"name": "nan", "seed": None, "network": [{"shape": [1, 2], "drop": "x"}], "landscape": None}
    assert unpacked(packed(run)) == json.loads(json.dumps(run))


READ = "async () => Promise.all((await source.runs()).map(({ name }) => source.run(name)))"


def test_a_browser_unpacks_the_same(tmp_path: Path) -> None:
    """The script of a report, in Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on the PATH")
    (tmp_path / "modules.json").write_text('["page.js"]')
    (tmp_path / "page.js").write_text("export function mount(element, given) {\n  window.source = given;\n}\n")
    (tmp_path / "page.css").touch()
    values = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    values[2, 1] = [np.nan, -np.inf]
    parts = {part: {"ünïcode": {"steps": [1, 2], "values": values}} for part in ("tables", "channels")}
    runs = {name: packed({"name": name, **parts, "empty": np.zeros((0, 2))}) for name in ("a", "b ☃ <i>")}
    file = tmp_path / "report.html"
    file.write_text("".join(html_page("runs", runs.items(), tmp_path)), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--disable-gpu"], chromium_sandbox=False)
        page = browser.new_page()
        page.goto(file.as_uri())
        found = page.evaluate(READ)
        browser.close()
    assert found == [unpacked(run) for run in runs.values()]
