"""The tab of TensorBoard: its routes, what they cost, and a real TensorBoard on a run that grows."""

import json
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from events import Events, small_run
from tensorboard.plugins.base_plugin import TBContext
from werkzeug import Request
from werkzeug.test import Client, TestResponse

from normzoo.page.event_file import EventFile
from normzoo.page.plugin import NormalizationPlugin

START = """
import sys, time
from tensorboard import default, program
from normzoo.page.plugin import NormalizationPlugin

server = program.TensorBoard(plugins=[*default.get_static_plugins(), NormalizationPlugin])
server.configure(argv=["tensorboard", *sys.argv[1:], "--port=0", "--host=127.0.0.1", "--load_fast=false"])
print(server.launch(), flush=True)
sys.stdin.read()
"""


class Tab:
    """The routes of a plugin, without TensorBoard around it."""

    def __init__(self, logdir: Path | str | None) -> None:
        self.plugin = NormalizationPlugin(TBContext(logdir=logdir and str(logdir)))
        self.client = Client(Request.application(self.route))

    def route(self, request: Request) -> Any:
        apps = self.plugin.get_plugin_apps()
        return apps["/static/*" if request.path.startswith("/static/") else request.path]

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])

    def runs(self) -> dict[str, str]:
        return {run["name"]: run["version"] for run in self.get("/runs").get_json()}

    def run(self, name: str) -> Any:
        return self.get(f"/run?name={quote(name, safe='')}").get_json()


def steps(run: Any) -> list[int]:
    return run["tables"]["GradientFlow"]["steps"]


def test_runs_are_listed_and_served_by_name(tmp_path: Path) -> None:
    names = ["BatchNorm-0/000", "a=b&c/ünïcode ☃", "sp ace/%2e%2e"]
    for name in names:
        small_run(tmp_path / name)
    Events(tmp_path / "plain").scalar(0, "loss", 1)
    tab = Tab(tmp_path)
    assert tab.plugin.is_active()
    assert set(tab.runs()) == set(names)
    for name in names:
        assert tab.run(name)["name"] == name
        assert steps(tab.run(name)) == [0, 1, 2]


def test_a_run_that_grows_has_a_new_version(tmp_path: Path) -> None:
    small_run(tmp_path / "a")
    small_run(tmp_path / "b")
    tab = Tab(tmp_path)
    before = tab.runs()
    assert steps(tab.run("a")) == [0, 1, 2]
    assert tab.runs() == before
    Events(tmp_path / "a").table(3, "normalization/GradientFlow", [[1, 1], [2, 2]])
    after = tab.runs()
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
    assert steps(tab.run("a")) == [0, 1, 2, 3]
    (tmp_path / "b/finished").touch()
    assert tab.runs()["b"] != before["b"]
    assert tab.run("b")["finished"]
    (tmp_path / "b/verdicts.json").write_text('[{"text": "a sentence"}]')
    assert tab.runs()["b"] != before["b"]
    shutil.rmtree(tmp_path / "b")
    assert set(tab.runs()) == {"a"}
    assert tab.get("/run?name=b").status_code == 404
    small_run(tmp_path / "c/new")
    assert set(tab.runs()) == {"a", "c/new"}
    assert steps(tab.run("c/new")) == [0, 1, 2]


def test_what_the_browser_has_is_not_sent_again(tmp_path: Path) -> None:
    small_run(tmp_path / "a")
    tab = Tab(tmp_path)
    for path in ("/run?name=a", "/runs", "/index.js"):
        first = tab.get(path, Accept_Encoding="gzip, br")
        assert first.headers["Content-Encoding"] == "gzip"
        again = tab.get(path, If_None_Match=first.headers["ETag"])
        assert (first.status_code, again.status_code, again.data) == (200, 304, b"")
    Events(tmp_path / "a").scalar(9, "loss", 1)
    assert tab.get("/run?name=a", If_None_Match=first.headers["ETag"]).status_code == 200


def test_polling_two_hundred_runs_reads_no_file_twice(tmp_path: Path) -> None:
    small_run(tmp_path / "000")
    for number in range(1, 200):
        shutil.copytree(tmp_path / "000", tmp_path / f"{number:03d}")
    Events(tmp_path / "plain").scalar(0, "loss", 1)
    tab = Tab(tmp_path)
    assert len(tab.runs()) == 200
    with patch.object(EventFile, "read", side_effect=AssertionError("a file was opened")):
        assert len(tab.runs()) == 200
        assert tab.plugin.is_active()


def test_only_what_is_appended_is_read(tmp_path: Path) -> None:
    small_run(tmp_path / "a", steps=50)
    tab = Tab(tmp_path)
    tab.run("a")
    Events(tmp_path / "a").scalar(60, "loss", 1)
    contents: list[bytes] = []
    read = EventFile.read
    with patch.object(EventFile, "read", lambda file: (contents.append(one) or one for one in read(file))):
        assert tab.run("a")["last_step"] == 60
    assert len(contents) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/run?name=../secret",
        "/run?name=..%2Fsecret",
        "/run?name=/etc",
        "/run?name=",
        "/run",
        "/run?name=.",
        "/static/plugin.py",
        "/static/..%2Fplugin.py",
        "/static/../plugin.py",
        "/static/%2e%2e%2f__init__.py",
        "/static/%2Fetc%2Fpasswd",
        "/static/",
    ],
)
def test_nothing_else_is_served(path: str, tmp_path: Path) -> None:
    small_run(tmp_path / "secret")
    small_run(tmp_path / "logs/run")
    with patch("normzoo.page.plugin.STATIC", tmp_path / "logs"):
        response = Tab(tmp_path / "logs").get(path)
    assert response.status_code == 404
    assert "error" in response.get_json()


def test_files_of_the_page_are_served_with_their_types(tmp_path: Path) -> None:
    for name in ("page.js", "page.css", "modules.json"):
        (tmp_path / name).write_text("// ☃")
    with patch("normzoo.page.plugin.STATIC", tmp_path):
        for name, kind in {
            "page.js": "text/javascript",
            "page.css": "text/css",
            "modules.json": "application/json",
        }.items():
            response = Tab(tmp_path).get(f"/static/{name}")
            assert response.text == "// ☃"
            assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"


def test_the_cells_of_a_grid_are_compared(tmp_path: Path) -> None:
    """Also those that have not begun; the runs of any other folder are not."""
    for name in ("000-a", "001-b"):
        small_run(tmp_path / name, norm=name[-1])
        Events(tmp_path / name).scalar(9, "val/loss", 1)
        (tmp_path / name / "finished").touch()
    (tmp_path / "002-c").mkdir()
    (tmp_path / "002-c/config.yaml").write_text("seed_everything: 0")
    tab = Tab(tmp_path)
    assert tab.get("/comparison").get_json() is None
    (tmp_path / "grid.yaml").touch()
    found = tab.get("/comparison").get_json()
    assert {arm["norm"]: arm["values"] for arm in found["arms"]} == {"a": [1], "b": [1], "?": [None]}
    with patch.object(EventFile, "read", side_effect=AssertionError("a file was opened")):
        assert tab.get("/comparison").get_json() == found
    (tmp_path / "002-c/failed").write_text("no memory")
    assert tab.get("/comparison").get_json()["cells"]["failed"] == 1


@pytest.mark.parametrize("logdir", [None, "", "gs://bucket/logs"])
def test_without_a_folder_the_tab_says_what_to_do(logdir: str | None) -> None:
    tab = Tab(logdir)
    assert not tab.plugin.is_active()
    assert "--logdir=FOLDER" in tab.get("/runs").get_json()["error"]
    assert tab.get("/run?name=a").status_code == 404


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_runs_is_empty_until_there_is_one(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tab = Tab(tmp_path / folder)
    assert not tab.plugin.is_active()
    assert tab.runs() == {}
    events = Events(tmp_path / folder / "run")
    assert not tab.plugin.is_active()
    events.table(0, "normalization/GradientFlow", [[1]], ["a"], ["m"])
    assert tab.plugin.is_active()
    assert [*tab.runs()] == ["run"]


def test_a_run_that_is_deleted_between_two_looks_is_gone(tmp_path: Path) -> None:
    small_run(tmp_path / "a")
    small_run(tmp_path / "b")
    tab, find_runs = Tab(tmp_path), {"a": tmp_path / "a", "b": tmp_path / "b", "gone": tmp_path / "gone"}
    with patch("normzoo.page.live_runs.find_runs", lambda folders: find_runs):
        assert set(tab.runs()) == {"a", "b"}
        shutil.rmtree(tmp_path / "b")
        assert tab.plugin.is_active()
        assert "a" in tab.runs()
        assert tab.get("/run?name=b").status_code == 404


def test_the_entry_point_leads_to_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    [path] = project["entry-points"]["tensorboard_plugins"].values()
    module, name = path.split(":")
    assert getattr(import_module(module), name) is NormalizationPlugin


# A real TensorBoard.


@pytest.fixture
def tensorboard(tmp_path: Path) -> Iterator[str]:
    """The address of a TensorBoard on a run of 3 steps."""
    small_run(tmp_path / "logs/digits/BatchNorm-0/000")
    command = [sys.executable, "-c", START, f"--logdir={tmp_path / 'logs'}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


def fetch(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=20) as response:
        content = response.read().decode()
    return json.loads(content) if response.headers["Content-Type"].startswith("application/json") else content


def test_tensorboard_shows_the_tab_and_each_new_step(tensorboard: str, tmp_path: Path) -> None:
    name = "digits/BatchNorm-0/000"
    listed = fetch(f"{tensorboard}data/plugins_listing")["normalization"]
    assert (listed["enabled"], listed["tab_name"]) == (True, "Normalization")
    assert "render" in fetch(f"{tensorboard}{listed['loading_mechanism']['module_path'].lstrip('/')}")
    assert "import" in fetch(f"{tensorboard}data/plugin_entry.html?name=normalization")
    routes = f"{tensorboard}data/plugin/normalization"
    [before] = fetch(f"{routes}/runs")
    assert before["name"] == name
    Events(tmp_path / "logs" / name).table(3, "normalization/GradientFlow", [[1, 1], [2, 2]])
    begun = time.monotonic()
    [after] = fetch(f"{routes}/runs")
    assert after["version"] != before["version"]
    assert steps(fetch(f"{routes}/run?name={quote(name, safe='')}")) == [0, 1, 2, 3]
    assert time.monotonic() - begun < 5
