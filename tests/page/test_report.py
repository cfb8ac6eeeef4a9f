"""The report: whole or not at all, of any run, in one file that asks nobody for anything."""

import base64
import errno
import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from commands import normzoo
from events import Events, resnet_run, small_run, unpacked

from normzoo.errors import InputError
from normzoo.page import report
from normzoo.page.bundle import html_page

MODULES = {
    "modules.json": '["a.js", "page.js"]',
    "a.js": 'const SECRET = "</script><!--";\nexport function half(x) {\n  return x / 2;\n}\nexport class A {}\n',
    "page.js": 'import { half, A } from "./a.js";\n\nexport const B = 1;\nexport async function mount(element) {}\n',
    "page.css": "body { margin: 0 }",
}


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """The folder of a page that shows nothing."""
    folder = tmp_path / "static"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    return folder


def data_of(file: Path) -> list[dict[str, Any]]:
    """The runs in a report, also where they lie in its HTML."""
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        assert content["version"] == 1
        return content["runs"]
    found = re.findall(r'<script type="text/plain" data-run="(.*?)">(.*?)</script>', file.read_text())
    runs = [unpacked(base64.b64decode(text)) for _, text in found]
    assert [html.unescape(name) for name, _ in found] == [run["name"] for run in runs]
    return runs


def test_a_report_has_the_values_of_the_tables(tmp_path: Path) -> None:
    small_run(tmp_path / "logs/BatchNorm-0/000")
    [run] = data_of(report(tmp_path / "logs", tmp_path / "report.json"))
    assert (run["name"], run["norm"], run["seed"], run["last_step"]) == ("BatchNorm-0/000", "BatchNorm", 0, 2)
    assert run["tables"]["GradientFlow"] == {
        "steps": [0, 1, 2],
        "layers": ["net.0", "net.1"],
        "metrics": ["flow_norm", "grad_norm"],
        "units": ["unit", "unit"],
        "values": [[[100 * step + 10 * row + column for column in range(2)] for row in range(2)] for step in range(3)],
    }


def test_all_kinds_of_tables_are_there(tmp_path: Path) -> None:
    events = Events(tmp_path / "run")
    layers = ["net.0", "net.1", "net.2"]
    bins = ["low", "high", *(f"bin_{i}" for i in range(4))]
    counts = np.arange(18).reshape(3, 6)
    events.table(0, "normalization/ActivationPercentiles/histogram", counts, layers, bins)
    events.table(
        0, "normalization/LossLandscape/curve", [[1, 2], [np.inf, np.nan]], ["0.05", "0.4"], ["loss", "gradient_change"]
    )
    events.table(0, "channels/net.0/a.b", [[1], [2]], ["0", "1"], ["gamma"])
    events.scalar(0, "train/loss", 0.5)
    [run] = data_of(report(tmp_path, tmp_path / "report.json"))
    assert run["histograms"] == {
        "ActivationPercentiles": {
            "steps": [0], "layers": layers, "low": [[0, 6, 12]], "high": [[1, 7, 13]],
            "counts": [counts[:, 2:].tolist()],
        }
    }  # fmt: skip
    assert run["landscape"] == {"steps": [0], "eta": [0.05, 0.4], "loss": [[1, np.inf]], "gradient_change": [[2, None]]}
    assert run["channels"] == {
        "net.0/a.b": {"steps": [0], "metrics": ["gamma"], "units": ["unit"], "values": [[[1], [2]]]}
    }
    assert run["scalars"] == {"train/loss": {"steps": [0], "values": [0.5]}}
    assert run["tables"] == {}


def test_a_table_has_at_most_200_steps(tmp_path: Path) -> None:
    small_run(tmp_path / "run", steps=1000)
    [run] = data_of(report(tmp_path, tmp_path / "report.json"))
    steps = run["tables"]["GradientFlow"]["steps"]
    assert (len(steps), steps[0], steps[-1]) == (200, 0, 999)
    assert [values[0][0] for values in run["tables"]["GradientFlow"]["values"]] == [100 * step for step in steps]


NAMES = ["net.0", "a/b/c", "ünïcode ☃", "nan", "<b>&\"'", "</script>", "100%", "a\tb", "層/🙂"]


@pytest.mark.parametrize("suffix", [".json", ".html"])
def test_names_and_values_of_any_kind_arrive(suffix: str, static: Path, tmp_path: Path) -> None:
    logs = tmp_path / "lögs </script>"
    events = Events(logs / "run ☃ <i>")
    values = [[np.nan if i == 0 else np.inf if i == 1 else -np.inf if i == 2 else i] for i in range(len(NAMES))]
    events.table(0, "normalization/X", values, NAMES, ["m"])
    with patch("normzoo.page.bundle.STATIC", static):
        [run] = data_of(report(logs, tmp_path / f"report{suffix}"))
    assert run["name"] == "run ☃ <i>"
    assert run["tables"]["X"]["layers"] == NAMES
    assert run["tables"]["X"]["values"] == [[[None if np.isnan(value) else value] for [value] in values]]


def test_the_page_is_one_script_without_requests(static: Path) -> None:
    page = "".join(html_page("a <title>", [("run", b"")], static))
    assert "<title>a &lt;title&gt;</title>" in page
    assert '<meta charset="utf-8">' in page
    assert "<noscript>" in page
    assert "<style>body { margin: 0 }</style>" in page
    [script] = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    assert not re.search("^(import|export)", script, re.MULTILINE)
    for line in ("function half(x) {", "class A {}", "const B = 1;", "async function mount(element) {}"):
        assert f"\n{line}" in script
    assert "<\\/script><\\!--" in script
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["']""", page)


def test_runs_of_different_networks_stand_side_by_side(tmp_path: Path) -> None:
    for norm, layers in (("BatchNorm", ["a", "b"]), ("NoNorm", ["x", "y", "z"])):
        small_run(tmp_path / f"logs/{norm}", norm=norm, layers=layers)
    runs = data_of(report([tmp_path / "logs/BatchNorm", tmp_path / "logs/NoNorm"], tmp_path / "report.json"))
    assert [(run["name"], run["norm"], len(run["tables"]["GradientFlow"]["layers"])) for run in runs] == [
        ("BatchNorm", "BatchNorm", 2),
        ("NoNorm", "NoNorm", 3),
    ]


def test_two_hundred_runs_are_written_in_seconds(tmp_path: Path) -> None:
    small_run(tmp_path / "logs/000")
    for number in range(1, 200):
        shutil.copytree(tmp_path / "logs/000", tmp_path / f"logs/{number:03d}")
    result = normzoo("report", str(tmp_path / "logs"), "-o", str(tmp_path / "report.json"))
    assert f"\nreport       {tmp_path / 'report.json'} (200 runs, " in result.out
    assert [run["name"] for run in data_of(tmp_path / "report.json")] == [f"{number:03d}" for number in range(200)]


# Whole or not at all.


def broken_write(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["os.fsync", "json_text"])
def test_a_report_that_cannot_be_written_leaves_the_one_before(function: str, tmp_path: Path) -> None:
    small_run(tmp_path / "logs/run")
    output = tmp_path / "report.json"
    output.write_text("before")
    module = "normzoo.runs.atomic" if function.startswith("os.") else "normzoo.page.report_file"
    with patch(f"{module}.{function}", broken_write), pytest.raises(InputError, match="could not be written"):
        report(tmp_path / "logs", output)
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "report.json"}


@pytest.mark.parametrize("output", ["file/report.json", "folder.json"])
def test_an_output_that_cannot_be_written_is_named(output: str, tmp_path: Path) -> None:
    small_run(tmp_path / "logs/run")
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    result = normzoo("report", str(tmp_path / "logs"), "-o", str(tmp_path / output))
    assert result.status == 1
    assert re.search(f"{output}: the report could not be written \\(.+\\); choose another place", result.err)
    assert {path.name for path in tmp_path.rglob("*.part")} == set()


# What is wrong is said in a sentence.


def test_what_is_no_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path / "lightning_logs/digits/000")
    Events(tmp_path / "plain/000").scalar(0, "loss", 1)
    Events(tmp_path / "more/000").scalar(0, "loss", 1)
    (tmp_path / "empty").mkdir()
    near = "There are lightning_logs/digits/000."
    for arguments, said in {
        (): "give the folder of a run or an experiment, such as lightning_logs. There are ",
        (
            "lightning_logs/digit",
        ): f"lightning_logs/digit does not exist; give the folder of a run or an experiment. {near}",
        ("empty",): "empty: no run: neither here nor in the folders below is an event file, events.out.tfevents.*",
        ("plain",): "plain/000 has no tables of monitors. 'normzoo fit' writes them unless --monitors=false",
        ("plain", "more"): "none of the 2 runs has tables of monitors. 'normzoo fit' writes them unless",
        ("",): "report '': the path is empty; give the folder of a run or an experiment. There are ",
        ("lightning_logs/digits/7",): "lightning_logs/digits/7 does not exist; give the folder of a run or an",
        (
            "lightning_logs",
            "-o",
            "report.pdf",
        ): "a report is a .html, .json or .csv file; try report.html.",
        ("lightning_logs/digits/000/events.out.tfevents.1700000000.host.1.0",): "is a file, not a folder",
        ("lightning_logs", "--output"): "expected one argument",
    }.items():
        result = normzoo("report", *arguments)
        assert result.status == 1
        assert said in result.err
        assert result.out == ""
    assert not (tmp_path / "report.html").exists()


def test_a_run_is_found_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        small_run(tmp_path / f"lightning_logs/digits/{number:03d}-BatchNorm-0")
    for path in ("lightning_logs/digits/1", "lightning_logs/digits/001"):
        result = normzoo("report", path, "-o", "report.json")
        assert (result.status, result.err) == (0, "")
        by_command = data_of(tmp_path / "report.json")
        assert [run["name"] for run in by_command] == ["001-BatchNorm-0"]
        assert data_of(report(path, "report.json")) == data_of(report([path], "report.json")) == by_command
    with pytest.raises(InputError, match="report '': the path is empty"):
        report("")


def test_what_cannot_be_read_is_a_note_and_the_rest_is_written(tmp_path: Path) -> None:
    small_run(tmp_path / "logs/cut")
    path = Events(tmp_path / "logs/cut").path
    path.write_bytes(path.read_bytes()[:-3])
    Events(tmp_path / "logs/plain").scalar(0, "loss", 1)
    result = normzoo("report", str(tmp_path / "logs"), "-o", str(tmp_path / "report.json"))
    assert result.status == 0
    assert f"normzoo: {path}: the last " in result.err
    assert "bytes are no whole record: it is being written, or was cut off\n" in result.err
    assert "(2 runs, " in result.out
    assert [run["tables"] == {} for run in data_of(tmp_path / "report.json")] == [False, True]
    with pytest.warns(UserWarning, match="being written, or was cut off"):
        report([tmp_path / "logs/cut"], tmp_path / "report.json")


def test_a_folder_that_disappears_is_a_note(tmp_path: Path) -> None:
    small_run(tmp_path / "logs/a")
    small_run(tmp_path / "logs/b")
    found = {"a": tmp_path / "logs/a", "gone": tmp_path / "logs/gone", "b": tmp_path / "logs/b"}
    with patch("normzoo.page.source.find_runs", lambda folders: found), pytest.warns(UserWarning, match="gone"):
        runs = data_of(report(tmp_path / "logs", tmp_path / "report.json"))
    assert [run["name"] for run in runs] == ["a", "b"]


@pytest.mark.slow
def test_three_runs_of_resnet20_with_200_samples_take_less_than_3_megabytes(tmp_path: Path) -> None:
    for seed in range(3):
        resnet_run(tmp_path / f"logs/{seed}", seed=seed)
    page = report(tmp_path / "logs", tmp_path / "report.html")
    assert len(data_of(page)[0]["tables"]["CovariateShift"]["steps"]) == 200
    assert page.stat().st_size < 3e6
