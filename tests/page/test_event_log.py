"""What is read from event files: all of it, as TensorBoard reads it, however they were cut, resumed or written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from events import Events, own, record, small_run
from monitored import classifier, fit, suite, written
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from normzoo.models import MLP
from normzoo.norms import NoNorm
from normzoo.page.event_file import EventFile
from normzoo.page.event_log import EventLog
from normzoo.page.find import find_runs
from normzoo.page.live_runs import LiveRuns
from normzoo.page.run_data import run_data


def read(folder: Path) -> EventLog:
    log = EventLog(folder)
    log.update()
    return log


def values(log: EventLog, tag: str = "normalization/GradientFlow") -> dict[int, Any]:
    table = log.series[tag].table()
    return dict(zip(table.steps, table.values.tolist(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all monitors, with validation."""
    folder = tmp_path_factory.mktemp("logs")
    fit(classifier(), suite(every=2), folder, limit_val_batches=2, val_check_interval=4)
    return folder / "run"


def test_tables_and_scalars_equal_what_tensorboard_reads(run: Path) -> None:
    log, events = read(run), written(run.parent)
    assert set(log.scalars) == set(events.tags["scalars"])
    for tag, points in log.scalars.items():
        np.testing.assert_equal(points, events.scalars(tag))
    tables = [tag for tag in events.tags["tensors"] if tag.startswith(("normalization/", "channels/"))]
    assert set(log.series) == {tag for tag in tables if tag not in ("normalization/run", "normalization/verdicts")}
    for tag, series in log.series.items():
        table, described = series.table(), events.described(tag)
        assert [*table.names.layers] == described["layers"]
        assert [*table.names.metrics] == described["metrics"]
        for step, expected in events.tables(tag).items():
            np.testing.assert_array_equal(table.values[table.steps.index(step)], expected.numpy())


def test_scalars_of_monitors_are_told_from_those_of_the_task(run: Path) -> None:
    data = run_data("run", read(run))
    assert "val/loss" in data["scalars"]
    metrics = {metric for table in data["tables"].values() for metric in table["metrics"]}
    assert not {tag.split("/")[0] for tag in data["scalars"]} & {*metrics, "landscape", "flow"}


def test_a_run_without_norms_is_a_run(tmp_path: Path) -> None:
    fit(classifier(MLP((1, 8, 8), 10, hidden=(6,), norm=NoNorm)), suite(), tmp_path, max_steps=6)
    data = run_data("run", read(tmp_path / "run"))
    assert data["tables"]["GradientFlow"]["values"].shape[1] == 2
    assert np.isfinite(data["tables"]["GradientFlow"]["values"][:, :, 0]).all()


def test_records_equal_those_that_tensorboards_reader_yields(run: Path) -> None:
    for path in run.glob("*tfevents*"):
        assert list(EventFile(path).read()) == list(RawEventFileLoader(str(path)).Load())


# Files that end anywhere.


def test_a_file_cut_anywhere_in_its_last_record_gives_all_before_it(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    path = Events(run).path
    whole, before = path.read_bytes(), values(read(run))
    Events(run).table(3, "normalization/GradientFlow", [[1, 2], [3, 4]])
    longer = path.read_bytes()
    for end in range(len(whole), len(longer)):
        path.write_bytes(longer[:end])
        log = read(run)
        assert values(log) == before
        assert bool(log.notes) == (end > len(whole))
        log.files[path.name].path.write_bytes(longer)  # the rest is written
        log.update()
        assert values(log) == {**before, 3: [[1, 2], [3, 4]]}
        assert log.notes == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content[:40] + b"\0" + content[41:],
        lambda content: content + b"\0" * 100,
        lambda content: content + b"\xff" * 100,
        lambda content: content + record(Event())[:12] + b"\0\0\0\0",
        lambda content: b"",
        lambda content: b"not an event file at all",
    ],
)
def test_a_damaged_file_gives_what_is_whole_and_a_note(break_it: Callable[[bytes], bytes], tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    path, expected = Events(run).path, values(read(run))
    path.write_bytes(break_it(path.read_bytes()))
    log = read(run)
    assert log.notes or not path.read_bytes()
    assert not log.series or values(log).items() <= expected.items()


def test_a_damaged_record_is_skipped_and_those_behind_it_are_read(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    path = Events(run).path
    content = bytearray(path.read_bytes())
    at = bytes(content).rindex(b"normalization/GradientFlow", 0, bytes(content).rindex(b"normalization/GradientFlow"))
    content[at] ^= 1
    path.write_bytes(content)
    log = read(run)
    assert [*values(log)] == [0, 2]
    assert log.notes == [f"{path}: skipped 1 damaged records"]


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"layers": ["a"]},
        {"layers": 3, "metrics": ["m"]},
        {"layers": ["a", "b", "c"], "metrics": ["m"]},
        {"layers": ["a"], "metrics": ["m"], "units": [1, 2]},
    ],
)
def test_a_table_that_does_not_fit_its_names_is_noted(content: Any, tmp_path: Path) -> None:
    Events(tmp_path).values(0, own("normalization/X", np.zeros((2, 1), np.float32), content))
    log = read(tmp_path)
    assert "normalization/X" not in log.series
    assert "step 0: skipped normalization/X" in log.notes[0]


# Files that grow.


def test_a_run_that_is_being_written_is_read_on(tmp_path: Path) -> None:
    events, log = Events(tmp_path), EventLog(tmp_path)
    events.table(0, "normalization/X", [[0]], ["a"], ["m"])
    for step in range(1, 5):
        log.update()
        assert [*values(log, "normalization/X")] == list(range(step))
        events.table(step, "normalization/X", [[step]])
    for step in (6, 7):  # a resumed run continues in another file, without the names
        Events(tmp_path, number=1).table(step, "normalization/X", [[step]])
        log.update()
        assert values(log, "normalization/X") == values(read(tmp_path), "normalization/X")
    assert sum(file.offset for file in log.files.values()) == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_a_run_that_is_resumed_writes_its_last_steps_once_more(tmp_path: Path) -> None:
    """The first file still has the steps behind the checkpoint."""
    small_run(tmp_path, steps=6)
    log = read(tmp_path)
    resumed = Events(tmp_path, number=1)
    resumed.start(4)
    log.update()
    assert [*values(log)] == [*values(read(tmp_path))] == [0, 1, 2, 3]
    resumed.table(4, "normalization/GradientFlow", [[1, 1], [1, 1]])
    log.update()
    assert values(log)[4] == values(read(tmp_path))[4] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("change", ["cut", "gone", "another"])
def test_a_file_that_becomes_shorter_or_is_gone_is_read_anew(change: str, tmp_path: Path) -> None:
    small_run(tmp_path, steps=6)
    log = read(tmp_path)
    path = Events(tmp_path).path
    path.unlink()
    if change != "gone":
        small_run(tmp_path, steps=3)
    if change == "another":
        path.rename(tmp_path / "events.out.tfevents.1.x")
    log.update()
    assert [*log.series] == [*read(tmp_path).series]
    if change != "gone":
        assert values(log) == values(read(tmp_path))


def test_training_and_evaluation_of_a_step_are_one(tmp_path: Path) -> None:
    events, tag = Events(tmp_path), "normalization/CovariateShift"
    events.table(9, tag, [[1, np.nan], [2, np.nan]], ["a", "b"], ["drift_w2", "val_w2"])
    events.table(9, tag, [[np.nan, 3], [np.nan, np.inf]])
    assert values(read(tmp_path), tag) == {9: [[1, 3], [2, np.inf]]}


def test_version_1_has_columns_of_evaluation_in_tables_of_their_own(tmp_path: Path) -> None:
    events, tag = Events(tmp_path), "normalization/CovariateShift"
    events.table(0, tag, [[1], [2]], ["a", "b"], ["drift_w2"], version=1)
    events.table(8, f"{tag}/val_w2", [[3]], ["b"], ["val_w2"], version=1)
    events.table(9, f"{tag}/val_w2", [[4]])
    table = run_data("run", read(tmp_path))["tables"]["CovariateShift"]
    assert (table["steps"], table["layers"], table["metrics"]) == ([0, 8, 9], ["a", "b"], ["drift_w2", "val_w2"])
    assert table["values"][1:, 1, 1].tolist() == [3, 4]


def test_scalars_of_any_writer_are_read(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    small_run(tmp_path)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            writer.add_scalar("mine/old", step / 2, step)
            writer.add_scalar("mine/new", step / 2, step, new_style=True)
        writer.add_histogram("mine/histogram", torch.arange(9.0))
    scalars = run_data("run", read(tmp_path))["scalars"]
    assert {tag: curve["values"].tolist() for tag, curve in scalars.items()} == {
        "mine/old": [0, 0.5, 1], "mine/new": [0, 0.5, 1]
    }  # fmt: skip


# Which runs there are.


def test_runs_have_the_names_of_their_folders_below_what_was_given(tmp_path: Path) -> None:
    for name in ("exp/BatchNorm-0/000", "exp/BatchNorm-0/010", "exp/BatchNorm-0/009", "exp/ünïcode ☃/a=b,c"):
        small_run(tmp_path / name)
    (tmp_path / "exp/BatchNorm-0/000/checkpoints").mkdir()
    (tmp_path / "other").symlink_to("exp")
    (tmp_path / "exp/loop").symlink_to(tmp_path)
    below = ["BatchNorm-0/000", "BatchNorm-0/009", "BatchNorm-0/010", "ünïcode ☃/a=b,c"]
    assert [*find_runs([tmp_path])] == [f"exp/{name}" for name in below]
    assert [*find_runs([tmp_path / "exp"])] == below
    assert [*find_runs([tmp_path / "exp" / name for name in (below[0], below[3])])] == [below[0], below[3]]
    assert [*find_runs([tmp_path / "exp" / below[0]])] == ["000"]
    assert [*find_runs([tmp_path / "other", tmp_path / "exp"])] == [f"other/{name}" for name in below]


def test_runs_lie_at_most_six_levels_deep(tmp_path: Path) -> None:
    for depth in (6, 7):
        small_run(tmp_path.joinpath(*map(str, range(depth))) / "x").rename(
            tmp_path.joinpath(*map(str, range(depth)), "y")
        )
    assert [*find_runs([tmp_path])] == ["0/1/2/3/4/5/y"][: len(find_runs([tmp_path]))]


def test_steps_that_were_saved_are_no_runs(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "run/bad/000012")
    (tmp_path / "run/bad/000012/rank0.pt").touch()
    assert [*find_runs([tmp_path])] == ["run"]


def test_a_run_of_scalars_has_no_tables(tmp_path: Path) -> None:
    Events(tmp_path).scalar(0, "normalization", 1.0)
    runs = LiveRuns(tmp_path)
    assert not runs.any()
    assert runs.versions() == {}
    Events(tmp_path, number=1).table(0, "normalization/X", [[0]], ["a"], ["m"])
    assert runs.any()
    assert [*runs.versions()] == [tmp_path.name]


# What a run is called.


@pytest.mark.parametrize(
    "norm,named",
    [
        ("normzoo.norms.GroupNorm", "GroupNorm"),
        ("{class_path: normzoo.norms.GroupNorm, init_args: {num_groups: 2}}", "GroupNorm"),
        ("mine.Norm", "Norm"),
        ("null", "?"),
        ("[1, 2]", "?"),
    ],
)
def test_norm_and_seed_come_from_the_configuration_of_older_runs(norm: str, named: str, tmp_path: Path) -> None:
    Events(tmp_path).table(0, "normalization/X", [[0]], ["a"], ["m"], version=1)
    net = f"{{class_path: normzoo.models.MLP, init_args: {{norm: {norm}}}}}"
    (tmp_path / "config.yaml").write_text(
        f"seed_everything: 7\nexperiment: mine\nmodel: {{class_path: x, init_args: {{net: {net}}}}}\n"
    )
    data = run_data("run", read(tmp_path))
    assert (data["norm"], data["seed"], data["experiment"]) == (named, 7, "mine")


@pytest.mark.parametrize("config", [None, "", "[", "- 1", "model: 3", "{model: {init_args: []}}", "[" * 100_000, "\0"])
def test_a_run_without_a_configuration_that_can_be_read_has_no_norm(config: str | None, tmp_path: Path) -> None:
    run = tmp_path / "digits" / "000"
    Events(run).table(0, "normalization/X", [[0]], ["a"], ["m"], version=1)
    if config is not None:
        (run / "config.yaml").write_text(config)
    data = run_data("run", read(run))
    assert (data["norm"], data["seed"], data["experiment"], data["steps"]) == ("?", None, "digits", None)


def test_the_description_of_a_run_wins(tmp_path: Path) -> None:
    network = [{"name": "net.0", "type": "Linear", "role": "weighted", "shape": [32, 4]}]
    Events(tmp_path).about(norm="LayerNorm", seed=3, steps=10, network=network)
    (tmp_path / "config.yaml").write_text("seed_everything: 7")
    small_run(tmp_path / "more")
    data = run_data("run", read(tmp_path))
    assert (data["norm"], data["seed"], data["steps"], data["network"]) == ("LayerNorm", 3, 10, network)


def test_the_newest_description_of_a_run_wins(tmp_path: Path) -> None:
    """A run that was resumed with a new limit describes itself once more."""
    layers = [[{"name": name, "type": "Linear", "role": "weighted", "shape": [4]}] for name in ("net.0", "net.1")]
    first = Events(tmp_path, number=2)
    first.about(norm="BatchNorm", seed=0, steps=3, network=layers[0])
    first.table(2, "normalization/X", [[0]], ["a"], ["m"])
    log = read(tmp_path)
    assert (run_data("run", log)["steps"], run_data("run", log)["finished"]) == (3, True)
    second = Events(tmp_path, number=10)  # behind 2, though not by the alphabet
    second.start(3)
    second.about(norm="LayerNorm", seed=1, steps=6, network=layers[1])
    log.update()
    for one in (log, read(tmp_path)):
        data = run_data("run", one)
        assert [data[key] for key in ("norm", "seed", "steps", "finished")] == ["LayerNorm", 1, 6, False]
        assert data["network"] == layers[1]
        assert data["last_step"] == 2


@pytest.mark.parametrize("steps,finished", [(3, True), (4, False), (None, False), ("x", False)])
def test_a_run_has_finished_after_its_last_step(steps: Any, finished: bool, tmp_path: Path) -> None:
    small_run(tmp_path)
    Events(tmp_path).about(steps=steps)
    assert run_data("run", read(tmp_path))["finished"] is finished
    (tmp_path / "finished").touch()
    assert run_data("run", read(tmp_path))["finished"] is True


# Verdicts.


def test_verdicts_are_those_of_the_file_else_those_of_the_events(tmp_path: Path) -> None:
    small_run(tmp_path)
    Events(tmp_path).verdict(1, rule="dead", layer="net.0")
    Events(tmp_path).verdict(2, rule="shift", layer="net.1")
    assert [one["rule"] for one in run_data("run", read(tmp_path))["verdicts"]] == ["dead", "shift"]
    (tmp_path / "verdicts.json").write_text(json.dumps([{"rule": "dead", "text": "a sentence"}]))
    assert [one["rule"] for one in run_data("run", read(tmp_path))["verdicts"]] == ["dead"]
    (tmp_path / "verdicts.json").write_text("[]")
    assert run_data("run", read(tmp_path))["verdicts"] == []


def test_a_run_is_healthy_only_if_rules_have_judged_it(tmp_path: Path) -> None:
    small_run(tmp_path)
    assert run_data("run", read(tmp_path))["judged"] is False
    (tmp_path / "verdicts.json").write_text("[]")
    assert run_data("run", read(tmp_path))["judged"] is True


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"rule": "dead"}]', "[" * 10_000])
def test_a_file_of_verdicts_that_is_none_is_noted(text: str, tmp_path: Path) -> None:
    small_run(tmp_path)
    Events(tmp_path).verdict(1, rule="dead")
    (tmp_path / "verdicts.json").write_text(text)
    log = read(tmp_path)
    assert [one["rule"] for one in run_data("run", log)["verdicts"]] == ["dead"]
    assert f"{tmp_path / 'verdicts.json'}: it is no list of verdicts" in log.notes[0]
