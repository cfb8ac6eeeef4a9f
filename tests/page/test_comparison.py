"""Runs compared: of event files, and of real grids in which a run diverged, one was cut off and one has not begun."""

import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import QUIET, normzoo
from events import Events

from normzoo.compare import Grid
from normzoo.errors import InputError
from normzoo.page import compare, report
from normzoo.page.comparison import comparison
from normzoo.page.comparison_table import print_comparison, table
from normzoo.page.event_log import EventLog
from normzoo.page.outcome import Outcome, step_time
from normzoo.runs.folders import CONFIG, FINISHED
from normzoo.runs.state import State


def a_run(
    folder: Path, norm: str, seed: int, accuracies: Sequence[float], test: float | None = None, **flags: Any
) -> Path:
    """A run of `normzoo fit` as its files say, without tables: a point every 10 steps, which takes 20 ms."""
    events = Events(folder)
    for i, accuracy in enumerate(accuracies):
        events.scalar(10 * i + 9, "val/accuracy", accuracy)
        events.scalar(10 * i + 10, "train/loss", 1 - accuracy)
    if test is not None:
        events.scalar(10 * len(accuracies), "test/accuracy", test)
        (folder / FINISHED).touch()
    net = {"class_path": "normzoo.models.MLP", "init_args": {"norm": f"normzoo.norms.{norm}"}}
    config = {"seed_everything": seed, "model": {"class_path": "T", "init_args": {"net": net, **flags}}}
    (folder / CONFIG).write_text(yaml.safe_dump({"on_bad_loss": "stop", **config}))
    return folder


def arms(found: dict[str, Any]) -> dict[str, Any]:
    return {arm["name"]: arm for arm in found["arms"]}


# The numbers.


def test_the_test_metric_is_reported_and_the_validation_metric_chooses(tmp_path: Path) -> None:
    for rate, (val, test) in {0.1: (0.8, 0.9), 1.0: (0.9, 0.7)}.items():
        for seed in range(2):
            values = [val / 2, val + 0.01 * seed, val / 3]
            a_run(tmp_path / f"{rate}-{seed}", "BatchNorm", seed, values, test - 0.01 * seed, lr=rate)
    found = compare(tmp_path, target=0.8)
    assert {key: found[key] for key in ("metric", "mode", "chosen_by", "baseline", "axes", "seeds")} == {
        "metric": "test/accuracy", "mode": "max", "chosen_by": "val/accuracy", "baseline": "BatchNorm",
        "axes": ["model.lr"], "seeds": [0, 1],
    }  # fmt: skip
    first, second = (arms(found)[f"BatchNorm, lr={rate}"] for rate in ("0.1", "1"))
    assert (first["best"], second["best"]) == (False, True)
    assert first["values"] == pytest.approx([0.9, 0.89])
    assert first["chosen_values"] == pytest.approx([0.8, 0.81])
    assert second["steps_to_target"] == {"median": 19, "reached": 2, "of": 2}
    assert (first["runs"], first["finished"], first["planned"]) == (["0.1-0", "0.1-1"], 2, 2)


def test_settings_are_chosen_by_the_seeds_that_all_have(tmp_path: Path) -> None:
    """Further seeds of one setting neither make it the best one nor, where they are worse, another one."""
    for rate, values in {0.1: [0.8, 0.9, 0.9, 0.9], 1.0: [0.81], 10.0: [0.9, 0.5, 0.5]}.items():
        for seed, value in enumerate(values):
            a_run(tmp_path / f"{rate}-{seed}", "BatchNorm", seed, [value], 0.5, lr=rate)
    assert [name for name, arm in arms(compare(tmp_path)).items() if arm["best"]] == ["BatchNorm, lr=10"]


def test_what_is_not_finished_has_no_value(tmp_path: Path) -> None:
    """A run that is interrupted, one that diverged, one whose last losses are NaN, and one that failed."""
    a_run(tmp_path / "done", "BatchNorm", 0, [0.5, 0.9], 0.8)
    a_run(tmp_path / "cut", "BatchNorm", 1, [0.5, 0.9])
    a_run(tmp_path / "bad", "BatchNorm", 2, [0.5])
    (tmp_path / "bad/bad/000012").mkdir(parents=True)
    a_run(tmp_path / "nan", "BatchNorm", 3, [0.5, math.nan, math.nan], 0.1)
    a_run(tmp_path / "failed", "BatchNorm", 4, [0.5])
    (tmp_path / "failed/failed").write_text("no memory\nat all")
    a_run(tmp_path / "diverged", "BatchNorm", 5, [0.5])
    (tmp_path / "diverged/diverged").write_text("step 14: the loss is nan (epoch 0)\nmore")
    found = compare(tmp_path)
    [arm] = found["arms"]
    assert arm["values"] == [pytest.approx(0.8), *[None] * 5]
    assert arm["chosen_values"] == [pytest.approx(0.9), *[None] * 5]
    assert (arm["mean"], arm["low"]) == (pytest.approx(0.8), None)
    assert [tuple(one.values()) for one in arm["failures"]] == [
        ("bad", 2, "diverged", 12, ""),
        ("nan", 3, "diverged", 20, ""),
        ("failed", 4, "failed", 10, "no memory"),
        ("diverged", 5, "diverged", 14, "step 14: the loss is nan (epoch 0)"),
    ]
    assert found["cells"] == {"planned": 6, "finished": 1, "failed": 1, "diverged": 3, "running": 0, "waiting": 1}


def test_a_run_that_skips_bad_steps_has_not_diverged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = a_run(tmp_path / name, "BatchNorm", 0, [0.5])
        (run / "bad/000003").mkdir(parents=True)
        (run / CONFIG).write_text((run / CONFIG).read_text().replace("stop", "skip"))
    assert compare(tmp_path)["cells"]["waiting"] == 1  # of the two with one seed, the last counts


def test_runs_of_any_other_trainer_are_finished(tmp_path: Path) -> None:
    for name, norm in (("a", "BatchNorm"), ("b", "NoNorm")):
        events = Events(tmp_path / name)
        events.about(norm=norm, seed=0, steps=None, network=[])
        events.scalar(3, "val_loss", 0.5 if norm == "NoNorm" else 0.4)
    found = compare(tmp_path)
    assert (found["metric"], found["mode"], found["axes"]) == ("val_loss", "min", ["norm"])
    assert arms(found)["NoNorm"]["difference"] == {
        "mean": pytest.approx(0.1), "low": None, "high": None, "pairs": 1, "p": None, "needed": None,
        "against": "BatchNorm",
    }  # fmt: skip
    assert found["lead"]["best"] == "BatchNorm"


def test_settings_of_any_other_trainer_are_its_hyperparameters(tmp_path: Path) -> None:
    for rate in (0.1, 1.0):
        events = Events(tmp_path / str(rate))
        events.about(norm="BatchNorm", seed=0, steps=None, network=[])
        events.scalar(3, "val_loss", rate)
        (tmp_path / str(rate) / "hparams.yaml").write_text(yaml.safe_dump({"lr": rate, "width": 32}))
    found = compare(tmp_path)
    assert (found["axes"], found["repeated"]) == (["lr"], [])
    assert [name for name, arm in arms(found).items() if arm["best"]] == ["BatchNorm, lr=0.1"]


def test_the_metric_is_that_of_the_task(tmp_path: Path) -> None:
    for name, value in (("BatchNorm", 3.0), ("NoNorm", 2.0)):
        run = a_run(tmp_path / name, name, 0, [0.5], 0.5)
        Events(run).scalar(9, "val/elbo", value)
        Events(run).about(monitor="val/elbo", monitor_mode="max")
    found = compare(tmp_path)
    assert (found["metric"], found["mode"], found["share"]) == ("val/elbo", "max", False)
    assert found["lead"]["best"] == "BatchNorm"


def test_the_baseline_is_asked_for_by_its_class(tmp_path: Path) -> None:
    for seed, norm in product(range(2), ("LayerNorm", "NoNorm", "GroupNorm")):
        a_run(tmp_path / f"{norm}-{seed}", norm, seed, [0.5], 0.5)
    assert compare(tmp_path)["baseline"] == "NoNorm"
    found = compare(tmp_path, baseline="GroupNorm")
    assert {arm["norm"]: arm["difference"] and arm["difference"]["against"] for arm in found["arms"]} == {
        "GroupNorm": None, "LayerNorm": "GroupNorm", "NoNorm": "GroupNorm"
    }  # fmt: skip
    result = normzoo("report", str(tmp_path), "-o", str(tmp_path / "r.html"), "--baseline=BatchNorm")
    assert (result.status, result.err) == (
        1, "normzoo: error: baseline='BatchNorm' is no norm of these runs; give one of GroupNorm, LayerNorm, NoNorm.\n"
    )  # fmt: skip
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(InputError, match="one run cannot be compared"):
        compare(tmp_path / "NoNorm-0")


@pytest.mark.parametrize("seed", range(30))
def test_any_comparison_keeps_the_laws(seed: int) -> None:
    """Of random runs, also diverged, waiting and unseeded ones."""
    random = np.random.default_rng(seed)
    states = [State.FINISHED, State.FINISHED, State.FINISHED, State.DIVERGED, State.FAILED, State.NEW, State.RUNNING]
    runs = []
    for norm, rate, number in product("ABC", (0.1, 1.0), range(int(random.integers(1, 5)))):
        value = float(random.choice([0.0, 1.0, math.nan, *random.random(9)]))
        known = None if random.random() < 0.1 else number
        settings = {"model.net.norm": norm, "lr": rate}
        state, curves = states[random.integers(len(states))], {"val/accuracy": {0: value}}
        runs.append(Outcome(f"{len(runs)}", seed=known, settings=settings, state=state, step=3, curves=curves))
    found = comparison(runs, target=0.5)
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    count = found["cells"]
    assert sum(count.values()) == 2 * count["planned"] == 2 * (len(runs) - len(found["repeated"]))
    assert sorted(name for arm in found["arms"] for name in arm["runs"]) == sorted(run.name for run in runs)
    for arm in found["arms"]:
        known = [value for value in arm["values"] if value is not None]
        assert (arm["mean"] is None) == (not known)
        assert arm["mean"] is None or arm["mean"] == pytest.approx(sum(known) / len(known))
        assert arm["low"] is None or 0 <= arm["low"] <= arm["mean"] <= arm["high"] <= 1
        for one in (arm["difference"], arm["best_difference"]):
            assert one is None or (arms(found)[one["against"]]["norm"] == found["baseline"] != arm["norm"])
        if arm["difference"]:
            assert arms(found)[arm["difference"]["against"]]["settings"] == {
                **arm["settings"],
                "norm": found["baseline"],
            }
        assert len(arm["failures"]) + arm["finished"] <= arm["planned"]
    for norm in {arm["norm"] for arm in found["arms"]}:
        mine = [arm for arm in found["arms"] if arm["norm"] == norm and arm["mean"] is not None]
        best = [arm for arm in mine if arm["best"]]
        assert len(best) == (len(mine) > 0)
        assert all(len(best[0]["failures"]) <= len(arm["failures"]) for arm in mine)


# Time per step.


def test_the_time_per_step_is_that_without_pauses(tmp_path: Path) -> None:
    """A validation of 5 s after every second point, and a resume after an hour."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    events, now = Events(tmp_path), 1000.0
    for point in range(1, 25):
        now += 0.05
        loss = Summary.Value(tag="train/loss", simple_value=1.0)
        events.write(Event(step=10 * point, wall_time=now, summary=Summary(value=[loss])))
        if point % 2:
            now += 5
            loss = Summary.Value(tag="val/loss", simple_value=1.0)
            events.write(Event(step=10 * point, wall_time=now, summary=Summary(value=[loss])))
        if point == 12:
            now += 3600
            events.write(Event(step=115, wall_time=now, session_log=SessionLog(status=SessionLog.START)))
    log = EventLog(tmp_path)
    log.update()
    assert step_time(log) == pytest.approx(5)


def test_one_point_has_no_time(tmp_path: Path) -> None:
    Events(tmp_path).scalar(1, "train/loss", 1)
    log = EventLog(tmp_path)
    log.update()
    assert step_time(log) is None


# The files and the terminal.


@pytest.fixture
def small_grid(tmp_path: Path) -> Path:
    """Two norms x two seeds, of which one has not begun and one failed."""
    grid = Grid(tmp_path / "grid", [], {"norm": ["BatchNorm", "NoNorm"], "seed": [0, 1]}, 1)
    for norm, seed in product(("BatchNorm", "NoNorm"), range(2)):
        run = a_run(tmp_path / "made", norm, seed, [0.5, 0.9 + 0.01 * seed], 0.9 + 0.01 * seed)
        config = yaml.safe_load((run / CONFIG).read_text())
        folder = grid.folder / grid.add({"norm": norm, "seed": seed}, f"{norm}-{seed}", config)
        if norm == "BatchNorm":
            shutil.copytree(run, folder, dirs_exist_ok=True)
        shutil.rmtree(run)
    (grid.folder / "003-NoNorm-1/failed").write_text('a "message",\nof two lines')
    grid.save()
    return grid.folder


def test_a_grid_shows_its_cells_from_the_start(small_grid: Path) -> None:
    found = compare(small_grid)
    assert found["cells"] == {"planned": 4, "finished": 2, "failed": 1, "diverged": 0, "running": 0, "waiting": 1}
    assert {name: (arm["runs"], arm["finished"]) for name, arm in arms(found).items()} == {
        "BatchNorm": (["000-BatchNorm-0", "001-BatchNorm-1"], 2),
        "NoNorm": (["002-NoNorm-0", "003-NoNorm-1"], 0),
    }


def test_files_beside_the_page_have_the_same_comparison(small_grid: Path, tmp_path: Path) -> None:
    result = normzoo("report", str(small_grid), "-o", str(tmp_path / "r.html"), "--csv", "--json", "--target=0.8")
    assert (result.status, result.err) == (0, "")
    assert [line.split(" (2 runs, ")[0] for line in result.out.splitlines() if line.startswith("report")] == [
        f"report       {tmp_path}/r.{suffix}" for suffix in ("html", "csv", "json")
    ]
    whole = json.loads((tmp_path / "r.json").read_text())
    assert [run["name"] for run in whole["runs"]] == ["000-BatchNorm-0", "001-BatchNorm-1"]
    assert whole["runs"][0]["tables"] == {}
    expected = compare(small_grid, target=0.8)
    assert whole["comparison"] == json.loads(json.dumps(expected), parse_float=lambda text: float(f"{float(text):.9g}"))
    page = (tmp_path / "r.html").read_text()
    [inside] = [line for line in page.splitlines() if "data-comparison>" in line]
    assert json.loads(inside.partition(">")[2].removesuffix("</script>")) == whole["comparison"]
    assert 'data-run="000-BatchNorm-0"' in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text(), newline="")))
    assert [(row["run"], row["norm"], row["seed"], row["state"], row["step"]) for row in rows] == [
        ("000-BatchNorm-0", "BatchNorm", "0", "finished", "20"),
        ("001-BatchNorm-1", "BatchNorm", "1", "finished", "20"),
        ("002-NoNorm-0", "NoNorm", "0", "new", ""),
        ("003-NoNorm-1", "NoNorm", "1", "failed", ""),
    ]
    assert float(rows[0]["test/accuracy"]) == float(rows[0]["best val/accuracy"]) == pytest.approx(0.9)
    assert rows[3]["message"] == 'a "message",\nof two lines'
    assert report(small_grid, tmp_path / "only.csv").read_text() == (tmp_path / "r.csv").read_text()


def test_the_terminal_shows_the_comparison(small_grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([small_grid])
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[:3]] == [
        "norm test/accuracy 95 % interval seeds against BatchNorm failures",
        "BatchNorm 90.5 % 84.1 to 96.9 2 of 2",
        "NoNorm - 0 of 2 1 failed",
    ]
    assert lines[3] == "2 of 4 runs are finished; 1 failed, 1 waiting."
    assert lines[-1] == "--target=0.86 adds the steps to val/accuracy 0.86, about 95 % of the best."
    print_comparison([small_grid / "000-BatchNorm-0"])
    assert capsys.readouterr().out == ""


def test_of_many_settings_the_terminal_shows_the_best() -> None:
    runs = [
        Outcome(f"{norm}{i}", norm, 0, {"lr": float(i)}, State.FINISHED, curves={"val/loss": {0: float(i)}})
        for norm, i in product("AB", range(1, 14))
    ]
    found = comparison(runs)
    assert found is not None
    assert table(found).row_count == 2
    assert str(table(found).caption) == "2 of 26 settings, the best of each norm against that of A; the report has all"
    assert table({**found, "arms": [{**arm, "best": False} for arm in found["arms"]]}).row_count == 24


@pytest.mark.slow
def test_a_real_grid(tmp_path: Path) -> None:
    """Trained by `normzoo fit`: a norm that trains, one with a rate that diverges, a run that was cut off."""
    short = ("--trainer.max_epochs=3", "--model.net.hidden=[16]", "--model.net.activation=torch.nn.ReLU")
    command = ("fit", "-c", "configs/digits_mlp.yaml", f"--runs={tmp_path}", "--experiment=grid", *QUIET, *short)
    for norm, rate, seed in [*product(("BatchNorm", "NoNorm"), (0.1,), (0, 1)), ("NoNorm", 1e30, 0)]:
        result = normzoo(
            *command, f"--model.net.norm={norm}", f"--model.optimizer.lr={rate}", f"--seed_everything={seed}"
        )
        assert result.status == (rate > 1), result.err
    (tmp_path / "grid/003-NoNorm-1" / FINISHED).unlink()
    found = compare(tmp_path, target=0.5)
    assert found["axes"] == ["norm", "model.optimizer.lr"]
    assert list(arms(found)) == ["BatchNorm, lr=0.1", "NoNorm, lr=0.1", "NoNorm, lr=1e+30"]
    batch, plain, nan = arms(found).values()
    assert found["cells"] == {"planned": 5, "finished": 3, "failed": 0, "diverged": 1, "running": 0, "waiting": 1}
    assert 0.5 < batch["mean"] <= 1
    assert batch["difference"] is None
    assert (plain["difference"]["pairs"], plain["difference"]["low"]) == (1, None)
    assert [(one["kind"], one["step"]) for one in nan["failures"]] == [("diverged", 1)]
    assert 0.05 < batch["step_ms"] < 1000
    page = report(tmp_path, tmp_path / "r.html")
    assert "data-comparison" in page.read_text()
