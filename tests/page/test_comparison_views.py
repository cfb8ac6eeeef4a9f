"""The views of a comparison of many runs, in a real browser."""

import re
from typing import Any

import pytest
from compared import Cell, compared
from opened_page import Open, Opened
from page_runs import Run

OF_COMPARISON = [
    "Comparison",
    "All settings",
    "Sensitivity to a setting",
    "Curves with seed bands",
    "Monitors side by side",
    "Verdicts",
]
DIVERGED: dict[Cell, int] = {
    ("NoNorm", 1.0, 0): 60,
    ("NoNorm", 1.0, 1): 90,
    ("NoNorm", 1.0, 2): 40,
    ("NoNorm", 0.1, 2): 70,
}
WAITING: list[Cell] = [("LayerNorm", 1.0, 1), ("LayerNorm", 1.0, 2)]


@pytest.fixture(scope="module")
def grid() -> tuple[list[Run], dict[str, Any]]:
    """27 cells: one arm diverged, one partly, one is not finished."""
    return compared(diverged=DIVERGED, waiting=WAITING)


def arm(comparison: dict[str, Any], norm: str, rate: float) -> dict[str, Any]:
    """An arm by its settings."""
    settings = {"norm": norm, "model.optimizer.lr": rate}
    return next(one for one in comparison["arms"] if one["settings"] == settings)


def row(opened: Opened, norm: str, rate: float) -> Any:
    """The row of an arm in the table of all settings."""
    rows = opened.page.locator("#nz-arms tbody tr").filter(has=opened.page.locator("th", has_text=norm))
    return rows.filter(has=opened.page.get_by_role("cell", name=f"{rate:g}", exact=True)).first


def chosen(opened: Opened) -> list[str]:
    """The arms that the legend names."""
    opened.settle()
    names: list[str] = opened.page.locator(".nz-bar .nz-legend > span").all_inner_texts()
    return sorted(re.sub(r"\s*\d+ seeds$", "", name) for name in names)


def percent(value: float, sign: str = "") -> str:
    """A share as the page writes it."""
    return f"{100 * value:{sign}.2f}"


def ends(interval: dict[str, Any], sign: str = "") -> str:
    """An interval as the page writes it."""
    return f"{percent(interval['low'], sign)} to {percent(interval['high'], sign)}"


BEST = ["BatchNorm, lr=1", "LayerNorm, lr=0.1", "NoNorm, lr=0.01"]


def test_a_comparison_comes_first_in_words_and_numbers(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    runs, comparison = grid
    opened = open_page(runs, comparison=comparison)
    assert opened.page.locator("section h2").all_inner_texts()[:6] == OF_COMPARISON
    assert opened.page.locator(".nz-words li").all_inner_texts() == comparison["words"]
    text = opened.page.locator("#nz-comparison svg.nz-figure").text_content()
    for one in comparison["arms"]:
        written = f"{percent(one['mean'])} ({ends(one)})" if one["low"] else "never"
        assert (written in text) == (one["best"] and one["low"] is not None)
    best = sorted((one for one in comparison["arms"] if one["best"]), key=lambda one: text.index(one["name"]))
    assert best == sorted(best, key=lambda one: -one["mean"])
    assert chosen(opened) == BEST
    layer = arm(comparison, "LayerNorm", 0.01)
    cells = row(opened, "LayerNorm", 0.01).locator("td, th").all_inner_texts()[1:]
    change = f"{percent(layer['difference']['mean'], '+')}\n{ends(layer['difference'], '+')}"
    assert cells == [
        "LayerNorm", "0.01", f"{percent(layer['mean'])}\n{ends(layer)}", "3 of 3",
        change.replace("-", "−"), "40", "2.15", "",
    ]  # fmt: skip
    assert row(opened, "LayerNorm", 1).locator("td").all_inner_texts()[2:4] == ["90.00", "1 of 3"]
    said = row(opened, "NoNorm", 1).inner_text()
    assert "0 of 3" in said
    assert "seed 0: diverged at step 60\nseed 1: diverged at step 90\nseed 2: diverged at step 40" in said
    assert opened.page.locator("#nz-arms .nz-mark").count() == 3


def test_a_click_on_an_arm_chooses_its_runs(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    opened = open_page(grid[0], comparison=grid[1])
    row(opened, "LayerNorm", 1).locator("th").click()
    assert chosen(opened) == ["LayerNorm, lr=1"]
    assert opened.page.locator(".nz-picker .nz-soft").inner_text() == "1 of 25"  # two cells have not started
    box = row(opened, "BatchNorm", 0.01).locator("input")
    box.focus()
    opened.page.keyboard.press("Space")
    assert chosen(opened) == ["BatchNorm, lr=0.01", "LayerNorm, lr=1"]
    assert opened.page.evaluate("document.activeElement.checked")  # the focus is still there
    opened.page.get_by_role("button", name="Show the best of each norm").click()
    assert chosen(opened) == BEST
    opened.page.get_by_role("button", name="Show all").click()
    assert len(chosen(opened)) == 9


def test_the_table_sorts_and_the_url_keeps_it(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    runs, comparison = grid
    opened = open_page(runs, comparison=comparison)
    known = [one["mean"] for one in comparison["arms"] if one["mean"] is not None]
    head = opened.page.locator("#nz-arms thead th", has_text="test/accuracy")
    for order in ("descending", "ascending"):
        head.locator("button").focus()
        opened.page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        shown = opened.page.locator("#nz-arms tbody tr td:nth-child(4)").all_inner_texts()
        expected = [percent(value) for value in sorted(known, reverse=order == "descending")]
        assert [text.split("\n")[0] for text in shown] == [*expected, "none"]  # the diverged arm is last in both
    opened.page.reload()
    opened.settle()
    assert head.get_attribute("aria-sort") == "ascending"


@pytest.mark.slow
def test_accuracy_against_the_learning_rate(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    runs, comparison = grid
    opened = open_page(runs, comparison=comparison)
    chart = opened.page.locator("#nz-setting svg.nz-figure")
    assert "test/accuracy, % against learning rate" in chart.text_content()
    counts = [chart.locator(f".{name}").count() for name in ("nz-best", "nz-cross", "nz-whisker")]
    assert counts == [3, 2, 7]  # an arm of one value has no whisker
    chart.focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.tip().startswith("learning rate 1\n")
    assert "NoNorm\n3 of 3 diverged" in opened.tip().replace("0 of 3 seeds, ", "")
    batch = arm(comparison, "BatchNorm", 1.0)
    written = f"{100 * batch['mean']:.4g} ({100 * min(batch['values']):.4g} to {100 * max(batch['values']):.4g})"
    assert f"BatchNorm: 3 of 3 seeds, best\n{written}" in opened.tip()
    assert "LayerNorm: 1 of 3 seeds\n90\n" in opened.tip()
    opened.page.keyboard.press("Enter")
    assert chosen(opened) == ["BatchNorm, lr=1", "LayerNorm, lr=1", "NoNorm, lr=1"]
    rows = opened.csv("setting")
    assert [float(one["result"]) for one in rows if one["norm"] == "BatchNorm" and one["value"] == "1"] == batch[
        "values"
    ]


@pytest.mark.slow
def test_of_many_norms_those_that_are_chosen_have_a_colour(open_page: Open) -> None:
    names = [f"Norm{i:02d}" for i in range(12)]
    runs, comparison = compared(norms=names, seeds=(0, 1))
    opened = open_page(runs, comparison=comparison)
    legend = opened.page.locator("#nz-setting .nz-legend > span")
    assert "Norm00" in legend.all_inner_texts()  # the baseline
    assert legend.count() == 7
    colours = legend.locator("line").evaluate_all("(all) => all.map((line) => line.getAttribute('stroke'))")
    assert len(set(colours)) == 7
    row(opened, "Norm11", 0.1).locator("th").click()
    opened.settle()
    assert legend.all_inner_texts() == ["Norm11"]
    assert opened.page.locator("#nz-setting svg.nz-figure path[stroke-width='1.2']").count() == 11


@pytest.mark.slow
def test_runs_without_monitors_have_views_of_the_comparison_only(open_page: Open) -> None:
    runs, comparison = compared(seeds=(0,))
    opened = open_page([{**run, "tables": {}, "histograms": {}} for run in runs], comparison=comparison)
    assert opened.page.locator("section h2").all_inner_texts() == OF_COMPARISON[:4]


@pytest.mark.slow
def test_any_numeric_setting_can_be_the_axis(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    runs, comparison = compared(norms=["BatchNorm"])
    for i, one in enumerate(comparison["arms"]):
        one["settings"] |= {"data.batch_size": 32 * 2**i, "data.name": "ab"[i % 2]}
    comparison["axes"] += ["data.batch_size", "data.name"]
    opened = open_page(runs, comparison=comparison)
    assert opened.page.locator("#nz-axis option").all_inner_texts() == ["model.optimizer.lr", "data.batch_size"]
    opened.page.locator("#nz-axis").select_option("data.batch_size")
    assert "against batch size" in opened.page.locator("#nz-setting svg.nz-figure").text_content()
    comparison["axes"] = ["data.name"]
    opened = open_page(runs, comparison=comparison)
    assert opened.page.locator("#nz-setting").count() == 0
    assert opened.page.locator("nav button").all_inner_texts()[2] == "3 Curves with seed bands"


@pytest.mark.slow
def test_curves_have_bands_and_end_with_a_cross(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    runs, comparison = grid
    opened = open_page(runs, comparison=comparison)
    row(opened, "NoNorm", 0.1).locator("th").click()
    opened.settle()
    for title in ("val/accuracy, %", "train/loss"):
        assert opened.chart(title, "curves").locator(".nz-cross").count() == 1
    chart = opened.chart("val/accuracy, %", "curves")
    chart.focus()
    values = sorted(
        run["scalars"]["val/accuracy"]["values"][6] for run in runs if run["name"] in names(comparison, "NoNorm", 0.1)
    )
    for _ in range(7):
        opened.page.keyboard.press("ArrowRight")
    step, label, numbers = opened.tip().split("\n")[:3]
    assert (step, label) == ("step 60", "NoNorm, lr=0.1")
    median, low, high = map(float, re.findall(r"[\d.]+", numbers))
    assert [low, median, high] == pytest.approx([100 * value for value in values], rel=1e-3)
    assert "target\n90" in opened.tip()
    opened.page.keyboard.press("ArrowRight")
    assert "NoNorm, lr=0.1: 2 of 3 seeds" in opened.tip()
    rows = [one for one in opened.csv("curves") if (one["metric"], one["step"]) == ("val/accuracy", "60")]
    assert [float(rows[0][key]) for key in ("low", "median", "high")] == pytest.approx(values, rel=1e-4)
    opened.page.get_by_role("button", name="Show all").click()
    opened.settle()
    titles = opened.page.locator("#nz-curves svg.nz-figure title").all_text_contents()
    assert {f"{tag}, {norm}" for tag in ("val/accuracy, %", "train/loss") for norm in ("BatchNorm", "NoNorm")} < set(
        titles
    )


def names(comparison: dict[str, Any], norm: str, rate: float) -> list[str]:
    """The runs of an arm."""
    found: list[str] = arm(comparison, norm, rate)["runs"]
    return found


@pytest.mark.slow
def test_a_curve_that_explodes_leaves_the_others_legible(open_page: Open) -> None:
    runs, comparison = compared(rates=[0.1])
    runs[0]["scalars"]["train/loss"]["values"][3] = 1e30
    opened = open_page(runs, comparison=comparison)
    assert re.search(r"; cut at \d+", opened.chart("train/loss", "curves").text_content())


@pytest.mark.slow
def test_monitors_side_by_side_share_axis_and_step(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    opened = open_page(grid[0], comparison=grid[1])
    panels = opened.page.locator("#nz-monitors svg.nz-figure")
    assert panels.count() == 9  # three monitors, three norms
    ticks = panels.evaluate_all(
        """(all) => all.slice(0, 3).map((one) => [...one.querySelectorAll("text[text-anchor=end]")].map((tick) =>
            [tick.textContent, tick.getAttribute("y")].join(" ")).join())"""
    )
    assert len(set(ticks)) == 1
    before = opened.page.locator("#nz-monitors svg").first.inner_html()
    opened.page.locator("#nz-step").focus()
    opened.page.keyboard.press("Home")
    opened.settle()
    assert opened.page.locator("#nz-monitors svg").first.inner_html() != before
    assert {one["step"] for one in opened.csv("monitors")} == {"0"}
    row(opened, "NoNorm", 0.1).locator("th").click()
    opened.settle()
    assert panels.count() == 3  # one arm


@pytest.mark.slow
def test_pictures_are_fit_for_a_slide(open_page: Open, grid: tuple[list[Run], dict[str, Any]]) -> None:
    """White even in dark mode; letters of 14 px at a width of 1280."""
    opened = open_page(grid[0], comparison=grid[1], color_scheme="dark")
    for view in ("comparison", "arms", "setting", "curves", "monitors"):
        picture = opened.saved(view, "SVG").decode()
        assert re.search(r"<rect [^>]*fill=\"#ffffff\"", picture)
        assert "#1d2025" not in picture
        width = float(re.search(r'<svg [^>]*?width="(\d+)"', picture)[1])
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)', picture)]
        assert min(sizes) * 1280 / width >= 14
        assert "BatchNorm" in picture
        assert opened.saved(view, "PNG").startswith(b"\x89PNG")
        assert opened.csv(view)
    assert opened.page.locator(".nz").get_attribute("data-theme") == "dark"


@pytest.mark.slow
def test_a_grid_that_has_just_begun_says_so(open_page: Open) -> None:
    cells = [(norm, 0.1, seed) for norm in ("BatchNorm", "NoNorm") for seed in (0, 1)]
    runs, comparison = compared(norms=("BatchNorm", "NoNorm"), rates=[0.1], seeds=(0, 1), waiting=cells)
    comparison.update(metric=None, chosen_by=None, mode=None, target=None, target_metric=None)
    opened = open_page(runs, comparison=comparison)
    assert "No run has finished yet." in opened.page.locator("#nz-comparison").text_content()
    assert "The chosen runs have not started." in opened.page.locator("#nz-curves").text_content()
    assert opened.page.locator("#nz-arms tbody input:disabled").count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [700, 1280])
def test_views_of_a_comparison_fit_the_window(
    open_page: Open, grid: tuple[list[Run], dict[str, Any]], width: int
) -> None:
    page = open_page(grid[0], width, comparison=grid[1]).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    cut = page.evaluate(
        """() => [...document.querySelectorAll("svg.nz-figure text")].filter((text) => {
            const [inner, outer] = [text, text.closest("svg")].map((node) => node.getBoundingClientRect());
            return Math.max(outer.left - inner.left, inner.right - outer.right, inner.bottom - outer.bottom) > 0.5;
        }).map((text) => text.textContent)"""
    )
    assert cut == []


@pytest.mark.slow
def test_60_runs_show_a_picture_in_two_seconds_and_stay_usable(open_page: Open) -> None:
    runs, comparison = compared(rates=[0.001, 0.01, 0.1, 1.0], seeds=range(5), depth=8, steps=50)
    lean = [{**run, "histograms": {}, "channels": {}, "left_out": True} for run in runs]
    opened = open_page(lean, comparison=comparison)
    assert opened.page.locator(".nz-fold").count() == 12  # the list of runs is collapsed by arm
    assert opened.page.locator(".nz-run:visible").count() == 0
    opened.page.locator(".nz-fold button").first.click()
    assert opened.page.locator(".nz-run:visible").count() == 5
    assert len(chosen(opened)) == 3
    assert opened.page.evaluate(FIRST_PICTURE) < 2000
    left_out = "BatchNorm, lr=1: left out of a report of more than 12 runs; a report of fewer has it."
    assert opened.page.locator("#nz-layer .nz-empty", has_text=left_out).count() == 2  # histograms, channels
    opened.page.get_by_role("button", name="All", exact=True).click()
    assert len(chosen(opened)) == 12


FIRST_PICTURE = "performance.getEntriesByName('nz-first-picture')[0].startTime"
