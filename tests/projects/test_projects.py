"""Projects that a stranger would write, none of them an image classifier: every command and every monitor works."""

import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUIET, normzoo
from forks import Forks
from left_behind import differences, records, saved
from monitored import MONITORS, Written

from normzoo.page.event_log import EventLog
from normzoo.page.run_data import run_data
from normzoo.runs import load_task

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Project:
    """A project, and what it lacks.

    Args:
        task: its LightningModule.
        data: its data module; None if the task loads its own data.
        answers: the commands that it can answer beside `fit`.
    """

    task: str
    data: str | None
    answers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.task.split(".")[0]

    @property
    def flags(self) -> tuple[str, ...]:
        return (f"--model={self.task}", *([f"--data={self.data}"] if self.data else []))

    @property
    def allow(self) -> str:
        return f"--allow={self.name}"


PROJECTS = {
    project.name: project
    for project in (
        Project("diabetes.Progression", "diabetes.Patients", ("validate", "test", "predict")),
        Project("two_heads.DigitAndInk", None, ("validate",)),
        Project("byol.BYOL", "byol.UnlabelledDigits", ()),
        Project("gan.GAN", None, ()),
        Project("sines.Forecaster", None, ("validate",)),
        Project("volumes.Segmenter", "volumes.BallsData", ("predict",)),
        Project("words.Finder", "words.Words", ("validate", "test", "predict")),
    )
}
STEPS = {"validate": "validation_step", "test": "test_step", "predict": "predict_step"}
WEIGHTED = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
FAST = ("gan",)
EPOCHS = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=6", "--checkpoint_minutes=0")
every = pytest.mark.parametrize("project", PROJECTS.values(), ids=list(PROJECTS))
essential = pytest.mark.parametrize(
    "project", [pytest.param(p, id=n, marks=() if n in FAST else pytest.mark.slow) for n, p in PROJECTS.items()]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the projects, in which commands are given."""
    folder = tmp_path_factory.mktemp("projects")
    for name in PROJECTS:
        shutil.copyfile(HERE / f"{name}.py", folder / f"{name}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        yield folder
    for name in PROJECTS:
        sys.modules.pop(name, None)
    trained.cache_clear()


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, and what it has printed."""

    folder: Path
    out: str


@cache
def trained(project: Project, *flags: str) -> Run:
    """Trains two short epochs with all monitors; any warning, as of a monitor that is left out, is an error."""
    result = normzoo("fit", *project.flags, *QUIET, *EPOCHS, f"--experiment={project.name}", *flags)
    assert result.status == 0, result.err
    [line] = [line for line in result.out.splitlines() if line.startswith("run ")]
    return Run(Path(line.split(maxsplit=1)[1]).resolve(), result.out)


def weights(run: Run) -> dict[str, Any]:
    return torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(map(torch.equal, one.values(), two.values()))


@every
def test_a_project_is_one_short_file(project: Project) -> None:
    assert len((HERE / f"{project.name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", ["sines", "gan"])
def test_the_page_of_the_docs_has_the_files_as_they_are(name: str) -> None:
    page = (HERE.parents[1] / "docs" / "projects.md").read_text(encoding="utf-8")
    assert f"```python\n# {name}.py\n{(HERE / f'{name}.py').read_text(encoding='utf-8')}```" in page


@essential
def test_every_monitor_shows_every_layer(project: Project, place: Path) -> None:
    run = trained(project)
    written, task = Written(run.folder), load_task(run.folder / "checkpoints" / "last.ckpt")
    names = dict(task.named_modules())
    assert set(written.monitors()) == set(MONITORS)
    for monitor in MONITORS.keys() - {"LossLandscape"}:
        layers = written.described(f"normalization/{monitor}")["layers"]
        assert {layer for layer in layers if not names.keys() & {layer, layer.rpartition("/")[0]}} == set()  # or a unit
        assert all(table.isfinite().any() for table in written.tables(f"normalization/{monitor}").values())
    assert all(values.isfinite().all() for values in written.values().values())
    called = [name for name, module in task.named_modules() if isinstance(module, WEIGHTED) and "attention" not in name]
    assert set(called) <= set(written.described("normalization/GradientFlow")["layers"])


@essential
def test_a_healthy_run_has_no_verdict(project: Project, place: Path) -> None:
    assert "no fault found" in trained(project).out


@essential
def test_monitors_leave_the_training_as_it_is(project: Project, place: Path) -> None:
    assert same(weights(trained(project)), weights(trained(project, "--monitors=false")))


@essential
def test_each_command_answers_or_says_why_not(project: Project, place: Path) -> None:
    run = trained(project).folder
    for command in ("validate", "test", "predict"):
        result = normzoo(command, f"--ckpt_path={run}", *QUIET, project.allow)
        if command in project.answers:
            assert result.status == 0, result.err
        else:
            assert result.status == 1
            assert re.search(rf"{STEPS[command]}|{command}_dataloader", result.err), result.err
            assert result.err.count("error: ") == 1
    if "predict" in project.answers:
        assert len((run / "predictions.csv").read_text().splitlines()) > 9


@essential
def test_a_checkpoint_says_what_it_is_of(project: Project, place: Path) -> None:
    result = normzoo("checkpoint", str(trained(project).folder / "checkpoints" / "last.ckpt"))
    assert result.status == 0, result.err
    assert re.search(rf"^task +{project.task}$", result.out, re.MULTILINE)
    assert re.search(r"^trained +epoch 2, step \d+$", result.out, re.MULTILINE)
    assert bool(re.search("^data ", result.out, re.MULTILINE)) == bool(project.data)


@essential
def test_the_page_has_its_layers(project: Project, place: Path) -> None:
    run = trained(project).folder
    result = normzoo("report", str(run), "-o", str(place / f"{project.name}.html"))
    assert result.status == 0, result.err
    log = EventLog(run)
    log.update()
    data = run_data("run", log)
    assert set(data["tables"]) == set(MONITORS)
    assert data["tables"]["GradientFlow"]["layers"]
    assert data["network"]
    assert data["finished"]
    assert data["verdicts"] == []


@pytest.mark.slow
@every
def test_its_config_repeats_it_and_its_norm_is_a_flag(project: Project, place: Path) -> None:
    run = trained(project)
    config = ("-c", f"{run.folder / 'config.yaml'}", project.allow)
    assert same(weights(trained(project)), weights(trained(project, *config, "--monitors=false")))
    grouped = trained(project, "--model.norm=GroupNorm", "--model.norm.num_groups=4", "--monitors=false")
    assert "GroupNorm" in grouped.folder.name
    for command in project.answers:  # a checkpoint knows its norm, whatever the task saves of its arguments
        result = normzoo(command, f"--ckpt_path={grouped.folder}", *QUIET, project.allow)
        assert result.status == 0, result.err
    norms = [one for one in load_task(grouped.folder / "checkpoints" / "last.ckpt").modules() if hasattr(one, "facts")]
    assert {type(one).__name__ for one in norms} == {"GroupNorm"}


# Dies at the third step of the second epoch.
DIE = """
import functools, importlib, os, signal, sys
sys.path.insert(0, os.getcwd())
module, name = "{task}".split(".")
task = getattr(importlib.import_module(module), name)
step, seen = task.training_step, []

@functools.wraps(step)
def dying(self, *args):
    if self.current_epoch == 1:
        seen.append(0)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)

task.training_step = dying
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.mark.slow
@every
def test_a_killed_run_ends_as_one_that_was_not(project: Project, place: Path, forks: Forks) -> None:
    """All of them load with `shuffle=True` or from a stream, so that checkpoints are those of the ends of epochs."""
    fit = ("fit", *project.flags, *QUIET, *EPOCHS, project.allow)
    whole = forks.run(*fit, "--experiment=whole", f"--runs={project.name}", cwd=place)
    assert whole.poll() == 0, whole.err
    killed = forks.run(
        *fit, "--experiment=cut", f"--runs={project.name}", cwd=place, before=DIE.format(task=project.task)
    )
    assert killed.poll() == -9, killed.err
    [run] = (place / project.name / "cut").iterdir()
    resumed = forks.run("resume", str(run), *QUIET, project.allow, cwd=place)
    assert resumed.poll() == 0, resumed.err
    [other] = (place / project.name / "whole").iterdir()
    ends = [
        saved(one, "last.ckpt") | {tag: values for tag, values in records(one).items() if not tag.startswith("_hp")}
        for one in (other, run)
    ]
    found = [name for name in differences(*ends) if "experiment" not in name]
    assert found == []


BAD = '''
import torch

from normzoo.norms import Norm


class Bad(Norm):
    """Its output is NaN in one pass of the training."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def normalize(self, x):
        self.count += self.training
        return x * torch.nan if int(self.count) == 9 else x / 2
'''


@essential
def test_a_step_that_is_not_finite_is_replayed(project: Project, place: Path) -> None:
    (place / "bad_norm.py").write_text(BAD)
    result = normzoo("fit", *project.flags, *QUIET, *EPOCHS, "--monitors=false", "--model.norm=bad_norm.Bad")
    assert result.status == 1, result.out
    assert "the loss is nan" in result.err
    layer = re.search(r"The first non-finite layer is (\S+) \(Bad\)", result.err)
    assert layer, result.err
    folder = re.search(r"normzoo replay (\S+)", result.err)
    assert folder
    again = normzoo("replay", folder[1], f"{project.allow},bad_norm")
    assert again.status == 0, again.out + again.err
    assert f">{layer[1]}" in again.out
    assert math.isnan(float(re.search(r"^loss in replay +(\S+)$", again.out, re.MULTILINE)[1]))
