"""`scripts/bench norms` and `monitors`, as processes: numbers are of this machine, what they count and print is not."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pages import zoo

BENCHES = Path(__file__).parents[2] / "scripts" / "benches"


def bench(*arguments: str, status: int = 0, name: str = "norms") -> str:
    command = [sys.executable, str(BENCHES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of large enough tensors that the layers go the way of large ones, and of small."""
    file = tmp_path_factory.mktemp("bench") / "costs.json"
    names, shapes = "BatchNorm,InstanceNorm,WeightNorm,NoNorm", "16x32x16x16,6x8"
    said = bench(f"--only={names}", f"--shapes={shapes}", "--rounds=1", "--no-compile", f"--json={file}")
    return {"said": said, "page": zoo.the_page(json.loads(file.read_text())), **json.loads(file.read_text())}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_marks_are_told_and_not_enforced(measured: dict[str, Any]) -> None:
    said = " ".join(measured["said"].split())
    assert "BatchNorm / built-in, images 1.0" in said
    assert "not measured" in said  # what was not asked for
    assert "pages kept" in measured["settings"] or sys.platform != "linux"


@pytest.mark.slow
def test_the_costs_stand_on_the_cards(measured: dict[str, Any]) -> None:
    card = measured["page"].split("\n### InstanceNorm\n")[1].split("\n### ")[0]
    assert "| (16, 32, 16, 16) |" in card
    assert "torch" in card.split("| (16, 32, 16, 16) |")[1].splitlines()[0]


@pytest.mark.slow
def test_an_unknown_layer_is_refused() -> None:
    assert "no layer is called Nonsense" in bench("--only=Nonsense", status=2)


@pytest.mark.slow
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


# Monitors. Of blocks of 60 steps in stretches of 30, after 4 steps of warm-up without and 4 with: the steps with are
# 4 to 7, which do not count, 8 to 37 and 68 to 97; the 50th of the block is step 88.

WITH = [*range(4, 8), *range(8, 38), *range(68, 98)]
MONITORS = ["RunningStatistics", "CovariateShift", "GradientFlow", "ActivationPercentiles", "InternalCovariateShift"]
MORE = {"ActivationPercentiles": ["histogram"]}
RATES = {
    "whole suite at its defaults": "1 1 1 1 1 1",
    "three statistics, every step": "60 60 60",
    "three statistics, every 50": "2 2 2",
    "RunningStatistics, every step": "60",
    "RunningStatistics, every 50": "2",
    "GradientFlow, every step": "60",
    "GradientFlow, every 50": "2",
    "as fastai, every step": "60",
    "as fastai, every 50": "2",
    "add_histogram, every step": "60",
    "add_histogram, every 50": "2",
    "as wandb.watch, every step": "60",
    "as wandb.watch, every 50": "2",
}


class Watched:
    """What `scripts/bench monitors` printed, and what its runs have written."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.said = bench(*arguments, f"--keep={folder}", name="monitors")

    def rows(self, label: str) -> dict[str, tuple[list[float], str]]:
        """Row -> with, without, ratio, least and largest ratio; and what stands behind them."""
        number = r"\s+\(?([\d.]+)"
        pattern = rf"^{label}: (.+?){number}{number}{number}{number} to ([\d.]+)\)(.*)$"
        found = re.findall(pattern, self.said, re.MULTILINE)
        return {name: (list(map(float, numbers)), " ".join(rest.split())) for name, *numbers, rest in found}

    def steps(self, row: str, kind: str, group: str) -> dict[str, list[int]]:
        """Tag -> the steps at which there is something."""
        [file] = (self.folder / re.sub(r"\W+", "_", row)).rglob("events.out.*")
        events = EventAccumulator(str(file), size_guidance={"tensors": 0, "histograms": 0})
        events.Reload()
        read = {"tensors": events.Tensors, "histograms": events.Histograms}[kind]
        tags: list[str] = events.Tags()[kind]  # type: ignore[assignment]
        return {tag: [event.step for event in read(tag)] for tag in tags if tag.startswith(group)}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(tmp_path_factory.mktemp("watched"), "--net=mlp", "--rounds=1", "--steps=60,30,4")


@pytest.mark.slow
def test_what_watching_costs_is_told_row_by_row(watched: Watched) -> None:
    rows = watched.rows("MLP")
    assert list(rows) == list(RATES)
    for name, (numbers, rest) in rows.items():
        on, off, ratio, least, most = numbers
        assert min(on, off) > 0, name
        assert least == ratio == most == pytest.approx(on / off, abs=0.02), name  # of a single block
        assert rest.endswith(RATES[name]), name
    assert "at most 1.05" in rows["whole suite at its defaults"][1]
    assert "at most 2.0" in rows["three statistics, every step"][1]
    assert "machine " in watched.said
    assert "torch" in watched.said


@pytest.mark.slow
def test_blocks_hold_the_samples_of_a_run_and_the_others_none(watched: Watched) -> None:
    suite = "MLP: whole suite at its defaults"
    for monitor in MONITORS:
        assert watched.steps(suite, "tensors", f"normalization/{monitor}") == {f"normalization/{monitor}": [4, 8]} | (
            {f"normalization/{monitor}/{more}": [4, 8] for more in MORE.get(monitor, ())}
        )
    for monitor in MONITORS[:3]:
        found = watched.steps("MLP: three statistics, every step", "tensors", f"normalization/{monitor}")
        assert found == {f"normalization/{monitor}": WITH}
    found = watched.steps("MLP: add_histogram, every 50", "histograms", "output/")
    assert list(found.values()) == [[4, 8, 88]] * 3  # of the three norms


@pytest.mark.slow
def test_what_is_written_in_detail_has_its_share(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "--net=mlp", "--only=RunningStatistics", "--rounds=1", "--steps=1000,250,4")
    assert [rest for _, rest in watched.rows("MLP").values()] == ["5, 1 in detail"]
    found = watched.steps("MLP: RunningStatistics, every 200", "tensors", "channels/")
    assert list(found.values()) == [[4, 8]] * 3  # and none at 1008, half way through the block


@pytest.mark.slow
def test_watching_a_convolutional_network_is_measured(tmp_path: Path) -> None:
    rows = Watched(tmp_path, "--net=resnet", "--rounds=1", "--steps=2,1,1").rows("ResNet-8")
    assert list(rows) == list(RATES)
    assert rows["three statistics, every step"][1] == "at most 1.10 2 2 2"
    assert rows["whole suite at its defaults"][1] == "at most 1.02 1 1 1 1 1 1"


@pytest.mark.slow
def test_memory_is_told_after_so_many_samples() -> None:
    said = bench("--only=memory", "--samples=20", name="monitors")
    lines = [line.split() for line in said.splitlines() if re.match(r" +\d", line)]
    assert [line[0] for line in lines] == ["2", "8", "14", "20"]
    assert all(float(line[1]) > 100 for line in lines)
    files = [int(line[2]) for line in lines]
    assert max(files) - min(files) <= 1  # the event file is opened with the first record that is written


@pytest.mark.slow
def test_an_unknown_monitor_is_refused() -> None:
    assert "--only=Nonsense: there are suite, statistics," in bench("--only=Nonsense", status=2, name="monitors")
