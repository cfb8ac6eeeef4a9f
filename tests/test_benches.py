"""`scripts/bench norms`, as a process: its numbers are of this machine, but their shape and their bytes are not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pages import zoo

BENCH = Path(__file__).parents[1] / "scripts" / "benches" / "norms.py"


def bench(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of large enough tensors that the layers go the way of large ones, and of small."""
    file = tmp_path_factory.mktemp("bench") / "costs.json"
    names, shapes = "BatchNorm,InstanceNorm,WeightNorm,NoNorm", "16x32x16x16,6x8"
    said = bench(f"--only={names}", f"--shapes={shapes}", "--rounds=1", "--no-compile", f"--json={file}")
    return {"said": said, "page": zoo.the_page(json.loads(file.read_text())), **json.loads(file.read_text())}


def test_every_layer_is_measured_where_its_facts_allow(measured: dict[str, Any]) -> None:
    found = {(cost["layer"], tuple(cost["shape"]), cost["layout"]) for cost in measured["costs"]}
    images, rows = (16, 32, 16, 16), (6, 8)
    expected = {
        (name, images, layout)
        for name in ("BatchNorm", "InstanceNorm", "WeightNorm", "NoNorm")
        for layout in ("contiguous", "channels-last")
    }
    assert found == expected | {(name, rows, "contiguous") for name in ("BatchNorm", "WeightNorm", "NoNorm")}
    for cost in measured["costs"]:
        assert not cost["problems"]
        assert min(cost["milliseconds"], cost["builtin"], cost["clones"], *cost["oracles"].values()) > 0
        assert "torch" in cost["oracles"]


def test_the_bytes_that_are_saved_are_counted(measured: dict[str, Any]) -> None:
    x = 4 * 16 * 32 * 16 * 16
    per_layer = {
        c["layer"]: (c["saved"], c["builtin_saved"])
        for c in measured["costs"]
        if (c["layout"], len(c["shape"])) == ("contiguous", 4)
    }
    assert per_layer["NoNorm"][0] == 0
    for ours, builtin in (per_layer["BatchNorm"], per_layer["InstanceNorm"]):
        assert x <= builtin < 1.05 * x
        assert x <= ours < 1.2 * x  # tables of a mean and so on per sample and channel


def test_marks_are_told_and_not_enforced(measured: dict[str, Any]) -> None:
    said = " ".join(measured["said"].split())
    assert "BatchNorm / built-in, images 1.0" in said
    assert "not measured" in said  # what was not asked for
    assert "pages kept" in measured["settings"] or sys.platform != "linux"


def test_the_costs_stand_on_the_cards(measured: dict[str, Any]) -> None:
    card = measured["page"].split("\n### InstanceNorm\n")[1].split("\n### ")[0]
    assert "| (16, 32, 16, 16) |" in card
    assert "torch" in card.split("| (16, 32, 16, 16) |")[1].splitlines()[0]


def test_an_unknown_layer_is_refused() -> None:
    assert "no layer is called Nonsense" in bench("--only=Nonsense", status=2)


def test_what_fails_is_shown_and_the_rest_is_measured() -> None:
    said = bench("--only=InstanceNorm,NoNorm", "--shapes=4x8x1x1", "--rounds=1", "--no-compile")
    assert "not measured: layer, InstanceNorm (4, 8, 1, 1) contiguous: InputError" in " ".join(said.split())
    assert "NoNorm" in said.split("/ the same by others")[1]


@pytest.mark.slow
def test_compiled_layers_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    bench("--only=BatchNorm,GroupNorm", "--shapes=4x8x6x6", "--rounds=1", f"--json={file}")
    costs = [cost for cost in json.loads(file.read_text())["costs"] if cost["compiled"]]
    assert [cost["layer"] for cost in costs] == ["BatchNorm", "GroupNorm"]
    assert not any(cost["problems"] for cost in costs)
    assert all(cost["builtin"] > 0 for cost in costs)
