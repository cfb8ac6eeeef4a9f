"""The pages that are made by code: that they are what the code makes now, and that what they say is in bounds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from references import reference

from normzoo.norms import Facts, layers
from pages import authors, axes, benchmark, claims, conformance, monitors, training, zoo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_zoo_and_the_readme_are_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for given in ("README.md", "docs/costs.json"):
        if (ROOT / given).exists():
            (tmp_path / given).write_bytes((ROOT / given).read_bytes())
    written = {path.relative_to(tmp_path) for path in zoo.write(tmp_path)}
    stale = [str(path) for path in written if not same_text(tmp_path / path, ROOT / path)]
    left = {path.relative_to(ROOT) for path in (DOCS / "axes").glob("*")} - written
    assert not stale, f"run scripts/docs zoo, which writes these anew: {', '.join(sorted(stale))}"
    assert not left, f"run scripts/docs zoo, which removes: {left}"


def test_the_page_of_the_monitors_is_up_to_date() -> None:
    page = monitors.the_page()
    assert (DOCS / "monitors.md").read_text() == page, "run scripts/docs monitors, which writes it anew"
    for picture in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (DOCS / picture).is_file()


def test_the_page_of_the_sweep_is_up_to_date() -> None:
    report = json.loads((DOCS / "training.json").read_text())
    assert (DOCS / "training.md").read_text() == training.the_page(report), "run scripts/docs training"


def test_the_page_of_the_claims_is_up_to_date() -> None:
    report = json.loads((DOCS / "claims.json").read_text())
    assert (DOCS / "claims.md").read_text() == claims.the_page(report, ROOT), "run scripts/docs claims"


def test_the_page_of_the_benchmark_is_up_to_date() -> None:
    report = json.loads((DOCS / "benchmark.json").read_text())
    assert (DOCS / "benchmark.md").read_text() == benchmark.the_page(report), "run scripts/docs benchmark"


def test_every_layer_is_in_the_sweep() -> None:
    report = json.loads((DOCS / "training.json").read_text())
    found, each = training.results(report), len(report["budget"]["rates"]) * len(report["budget"]["seeds"])
    for name, layer in layers().items():
        for network in ("MLP", "ConvNet", "ResNet-8") if layer.facts.dense else ("ConvNet", "ResNet-8"):
            assert (network, name) in found, f"run scripts/bench sweep --only={name}"
            assert found[network, name].runs == each
            if training.share(network, name, found) < training.MARK:
                assert "on digits" in (layer.__doc__ or ""), f"say in the docstring of {name} why it hardly trains"


def same_text(a: Path, b: Path) -> bool:
    return b.exists() and a.read_text() == b.read_text()


def test_a_layer_missing_from_the_readme_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    without = text.replace("GroupNorm, InstanceNorm", "InstanceNorm")
    assert without != text
    assert zoo.with_table(without) == text == zoo.with_table(text)


def test_every_layer_has_a_card() -> None:
    page = zoo.the_page(None)
    for name, layer in layers().items():
        card = page.split(f"\n### {name}\n")[1].split("\n### ")[0]
        assert f"(axes/{axes.file_name(layer.facts)}" in card.replace('src="', "(")
        assert layer.facts.formula.split("`")[0].split(",")[0] in card
        for oracle in reference(name).oracles:
            assert oracle in card


def test_costs_are_shown_where_they_were_measured() -> None:
    cost = {
        "layer": "GroupNorm",
        "shape": [128, 64, 32, 32],
        "layout": "contiguous",
        "compiled": False,
        "milliseconds": 12.345,
        "builtin": 1.234,
        "clones": 5.0,
        "oracles": {"torch": 0.987},
        "saved": 100,
        "builtin_saved": 200,
    }
    compiled = {**cost, "compiled": True, "builtin": None, "oracles": {}, "saved": 0, "builtin_saved": 0}
    page = zoo.the_page({"machine": "a machine", "settings": "pages kept", "costs": [cost, compiled]})
    assert "a machine" in page
    [row] = [line for line in page.splitlines() if line.startswith("| (128, 64, 32, 32)")]
    assert row == "| (128, 64, 32, 32) | 12.35 | 1.23 | 5.00 |  |  | torch 0.99 | 0.50 |"


# Conformance


def rows() -> dict[tuple[str, str], dict[str, str]]:
    return {(row["layer"], row["beside"]): row for row in conformance.read((DOCS / "conformance.md").read_text())}


def test_conformance_has_a_row_for_every_layer_and_implementation() -> None:
    expected = {(name, conformance.FORMULA) for name in layers()}
    expected |= {(name, oracle) for name in layers() for oracle in reference(name).oracles}
    assert set(rows()) == expected, "run scripts/docs conformance"


def test_conformance_is_within_the_tolerance() -> None:
    for (name, beside), row in rows().items():
        excused = {"equals-reference", "gradient-of-reference"} & set(layers()[name].facts.exceptions)
        oracle = reference(name).oracles.get(beside)
        tolerance = oracle.tolerance if oracle else 1e-9
        assert float(row["tolerance"]) == tolerance, f"{name} beside {beside}: run scripts/docs conformance"
        found = [row[f"{kind}, float64"] for kind in conformance.KINDS]
        assert found[0] != "-", f"{name} beside {beside}: nothing was compared"
        if not excused:
            assert all(float(value) <= tolerance for value in found if value != "-"), f"{name} beside {beside}"


def test_the_code_of_the_authors_is_up_to_date() -> None:
    assert set(authors.AUTHORS) <= set(layers())
    assert authors.section() in (DOCS / "conformance.md").read_text(), "run scripts/docs conformance"
    for name, code in authors.AUTHORS.items():
        assert code.largest is None or code.where, f"{name}: a number without the code that it is about"
        assert (code.largest is None) == code.compared.startswith(("read", "none", "nothing", "torch")), name


def test_a_difference_is_seen() -> None:
    row = conformance.Row("X", "y", 1e-9)
    a, b = torch.tensor([1.0, 100.0]), torch.tensor([1.0, 99.0])
    row.add("float64", [("output at step 0", a, b), ("running_mean", a, a)])
    assert row.largest == {("float64", "output"): pytest.approx(0.01), ("float64", "state"): 0.0}
    [read] = conformance.read(conformance.the_page([row]))
    assert read["output, float64"] == "1.0e-02"
    assert read["gradient, float64"] == "-"


def test_the_comparisons_of_a_layer_are_written_down() -> None:
    found = {row.beside: row for row in conformance.compare(["GroupNorm"])}
    assert set(found) == {conformance.FORMULA, "torch"}
    assert all(row.layouts == ["NC", "NCL", "NCHW"] for row in found.values())
    largest = found[conformance.FORMULA].largest
    assert 0 < largest["float64", "output"] < 1e-9 < largest["float32", "output"] < 1e-4
    assert 0 < largest["float64", "gradient"] < 1e-9 < largest["float32", "gradient"] < 1e-4


# Pictures


def coloured(facts: Facts) -> dict[str, int]:
    """How many cells of each face are in colour."""
    tree = ElementTree.fromstring(axes.picture(facts))
    fills = [shape.get("fill") for shape in tree.iter("{http://www.w3.org/2000/svg}polygon")]
    return {face: fills.count(colour) for face, colour in axes.FACES.items()}


N, C, S = axes.SAMPLES, axes.CHANNELS, axes.POSITIONS


@pytest.mark.parametrize(
    ("facts", "front", "top", "side"),
    [
        (Facts(), 0, 0, 0),
        (Facts(axes=("N", "s")), S, N, N * S),
        (Facts(axes=("C", "s")), C * S, C, S),
        (Facts(axes=("C",)), C, C, 1),
        (Facts(axes=("s",)), S, 1, S),
        (Facts(axes=("C/G", "s")), axes.GROUP * S, axes.GROUP, S),
        (Facts(axes=("C/w",)), axes.WINDOW, axes.WINDOW, 0),
        (Facts(axes=("N", "C", "s")), C * S, C * N, N * S),
        (Facts(axes=("s",), acts_on="weight"), C * S, C, S),
    ],
    ids=lambda value: axes.file_name(value) if isinstance(value, Facts) else "",
)
def test_a_picture_colours_one_set(facts: Facts, front: int, top: int, side: int) -> None:
    assert coloured(facts) == {"front": front, "top": top, "side": side}


def test_a_picture_for_each_set_of_axes() -> None:
    facts = [layer.facts for layer in layers().values()]
    names = {axes.file_name(one) for one in facts}
    assert len(names) == len({(one.axes, one.acts_on) for one in facts})
    assert all(re.fullmatch(r"[\w-]+\.svg", name) for name in names)
    assert axes.file_name(replace(facts[0], acts_on="weight")) not in {axes.file_name(facts[0])}
