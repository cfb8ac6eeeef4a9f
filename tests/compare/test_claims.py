"""Claims of papers: how rules judge, what is measured of runs, and that every recipe can be planned and tried."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from commands import normzoo
from datasets import write_stand_in
from torch.utils.tensorboard import SummaryWriter

from normzoo.compare import settings
from normzoo.compare.claims import CLAIMS, Claim, Rule, Run, Verdict
from normzoo.compare.claims._corruptions import CORRUPTIONS, corrupt
from normzoo.compare.claims._run import runs_of
from normzoo.compare.grid import FILE, Grid
from normzoo.norms import BatchNorm, LayerNorm

every_claim = pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
RULES = (Rule("ratio", least=5), Rule("growth", least=2, most=6))
NAN = math.nan


def claim_of(*rules: Rule) -> Claim:
    return replace(CLAIMS["bn-sigmoid"], rules=rules, seeds=(0, 1))


@pytest.mark.parametrize(
    "ratios,growths,verdict",
    [
        ([5, 9], [2, 6], Verdict.SHOWS),
        ([5, math.inf], [3, 3], Verdict.SHOWS),
        ([4.9, 9], [3, 3], Verdict.NOT),
        ([5, 9], [3, 6.1], Verdict.NOT),
        ([5, 9], [1.9, 3], Verdict.NOT),
        ([5, NAN], [3, 3], Verdict.OPEN),
        ([5], [3], Verdict.OPEN),
        ([], [], Verdict.OPEN),
        ([4], [3], Verdict.NOT),  # a seed that contradicts decides, whatever the others will say
        ([4, NAN], [3, 3], Verdict.NOT),
    ],
)
def test_a_claim_shows_if_all_rules_hold_on_every_seed(
    ratios: list[float], growths: list[float], verdict: Verdict
) -> None:
    measured = {seed: {"ratio": a, "growth": b} for seed, (a, b) in enumerate(zip(ratios, growths, strict=True))}
    assert claim_of(*RULES).judge(measured) == verdict


def test_values_without_a_rule_are_shown_and_not_judged() -> None:
    rows = claim_of(RULES[0]).rows({0: {"other": 1.0, "ratio": 9.0}})
    assert [(row.value, row.verdict) for row in rows] == [("ratio", Verdict.OPEN), ("other", None)]
    assert rows[1].found[0] == 1.0
    assert math.isnan(rows[1].found[1])


@every_claim
def test_the_seeds_of_a_recipe_are_those_of_its_grids(claim: Claim) -> None:
    for arguments in claim.grids.values():
        config, words = Path(arguments[1]), arguments[2:]
        assert config.suffix == ".yaml"
        assert yaml.safe_load(config.read_text())["monitors"] is False
        assert settings.parse(words)["seed"] == list(claim.seeds)


@pytest.mark.slow
@every_claim
def test_every_recipe_can_be_planned(claim: Claim, tmp_path: Path) -> None:
    from normzoo.cli.plan import plan
    from normzoo.runs.state import State

    for folder, arguments in claim.grids.items():
        words, command = [*arguments[2:]], [*arguments[:2]]
        grid = Grid(tmp_path / folder, command, settings.parse(words), threads=1)
        grid.folder.mkdir()
        of_each_norm = {cell["norm"]: cell for cell in settings.cells(grid.settings)}
        names = plan(grid, [*of_each_norm.values()])
        assert set(grid.states(names).values()) == {State.NEW}


def test_what_is_measured_includes_what_is_judged() -> None:
    found = json.loads((Path(__file__).parents[2] / "docs/claims.json").read_text())["claims"]
    assert set(found) == set(CLAIMS), "run normzoo claims --json=docs/claims.json"
    for name, claim in CLAIMS.items():
        for values in found[name].values():
            assert {rule.value for rule in claim.rules} <= set(values)


# Runs made by hand.


Scalars = Mapping[str, Mapping[int, float]]


def write_grid(folder: Path, cells: Mapping[str, tuple[settings.Cell, Scalars | None]]) -> None:
    """A grid whose runs have some scalars; None for one that diverged."""
    folder.mkdir()
    grid = Grid(folder, [], {}, threads=1, cells={name: cell for name, (cell, _) in cells.items()})
    grid.save()
    for name, (_, scalars) in cells.items():
        (folder / name).mkdir()
        (folder / name / ("diverged" if scalars is None else "finished")).write_text("step 3: the loss is nan")
        with SummaryWriter(str(folder / name)) as writer:
            for tag, points in (scalars or {}).items():
                for step, value in points.items():
                    writer.add_scalar(tag, value, step)


def test_the_largest_rate_is_that_of_a_run_that_trains(tmp_path: Path) -> None:
    def cell(norm: str, rate: float, accuracy: float | None) -> tuple[settings.Cell, Scalars | None]:
        scalars = None if accuracy is None else {"test/accuracy": {100: accuracy}}
        return {"norm": norm, "seed": 0, "model.optimizer.lr": rate}, scalars

    write_grid(
        tmp_path / "largest-rate",
        {
            "000-NoNorm-0": cell("NoNorm", 0.01, 0.95),
            "001-NoNorm-0": cell("NoNorm", 0.1, None),
            "002-BatchNorm-0": cell("BatchNorm", 0.1, 0.95),
            "003-BatchNorm-0": cell("BatchNorm", 1.0, 0.91),
            "004-BatchNorm-0": cell("BatchNorm", 10.0, 0.6),
        },
    )
    claim = replace(CLAIMS["largest-rate"], seeds=(0,))
    assert claim.judge(claim.measured(tmp_path)) == Verdict.SHOWS
    assert claim.rows(claim.measured(tmp_path))[0].found == [pytest.approx(100)]
    (tmp_path / "largest-rate/003-BatchNorm-0/finished").unlink()
    assert claim.measured(tmp_path) == {}  # not before all runs of the seed have ended
    assert claim.judge({}) == Verdict.OPEN


def test_steps_to_an_accuracy_count_from_one_and_are_all_where_it_is_never_reached(tmp_path: Path) -> None:
    curve = {"val/accuracy": {24: 0.5, 49: 0.95, 74: 0.9}, "test/accuracy": {75: 0.9}}
    write_grid(tmp_path / "grid", {"000-BatchNorm-0": ({"norm": "BatchNorm(eps=0.1)", "seed": 0}, curve)})
    [run] = runs_of(tmp_path / "grid")
    assert (run.norm, run.seed, run.steps_to(0.95), run.steps_to(0.99)) == ("BatchNorm", 0, 50, 75)
    assert run.accuracy == pytest.approx(90)
    assert runs_of(tmp_path) == []
    assert not (tmp_path / FILE).exists()


# Recipes that train nothing.


def test_invariances_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = CLAIMS["invariances"]
    assert claim.judge(claim.measured(Path())) == Verdict.SHOWS
    from normzoo.compare.claims import invariances

    monkeypatch.setitem(invariances.NORMS, "batch norm", LayerNorm)
    assert claim.judge(claim.measured(Path())) == Verdict.NOT
    monkeypatch.setitem(invariances.NORMS, "batch norm", BatchNorm)  # an eps of 1e-5 is no invariance in float64
    assert claim.judge(claim.measured(Path())) == Verdict.NOT


@pytest.mark.slow
def test_gradients_explode_as_the_theory_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("normzoo.data.FashionMNIST.elsewhere", ())
    write_stand_in("FashionMNIST", tmp_path / "data", train=300)
    claim = replace(CLAIMS["gradient-explosion"], seeds=(0,))
    assert claim.judge(claim.measured(tmp_path)) == Verdict.SHOWS


def test_corruptions_keep_shape_and_range_and_change_every_image() -> None:
    pixels = torch.randint(0, 256, (4, 28, 28, 1), dtype=torch.uint8)
    changed, again = corrupt(pixels, 0), corrupt(pixels, 0)
    assert list(changed) == list(CORRUPTIONS)
    for name, images in changed.items():
        assert (images.shape, images.dtype) == (pixels.shape, pixels.dtype)
        assert (images != pixels).flatten(1).any(1).all(), name
        assert torch.equal(images, again[name])


# The command.


def test_list_shows_statements_rules_and_commands() -> None:
    found = normzoo("claims", "--list")
    assert found.status == 0
    text = " ".join(found.out.split())
    for claim in CLAIMS.values():
        assert claim.name in text
        assert all(command in text for command in claim.commands(Path.cwd()))


def test_an_unknown_claim_is_refused_with_the_nearest_name() -> None:
    found = normzoo("claims", "bn-sigmoids")
    assert (found.status, "did you mean 'bn-sigmoid'?" in found.err) == (1, True)


@pytest.mark.slow
def test_a_claim_is_trained_judged_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 steps show that BatchNorm is faster; the distributions have not grown as far as the rule asks."""
    whole = CLAIMS["bn-sigmoid"]
    arguments = [*whole.grids["bn-sigmoid"][:-1], "seed=0", "--trainer.max_steps=500"]
    monkeypatch.setitem(CLAIMS, whole.name, replace(whole, grids={"bn-sigmoid": arguments}, seeds=(0,)))
    command = ("claims", whole.name, "--jobs=2", f"--out={tmp_path}/out", f"--json={tmp_path}/claims.json")
    first, second = normzoo(*command), normzoo(*command)
    assert (first.status, second.status) == (1, 1)
    assert "0 have ended" in first.out
    assert "2 cells, 2 have ended" in second.out
    rows = whole.rows({0: json.loads((tmp_path / "claims.json").read_text())["claims"][whole.name]["0"]})
    verdicts = {row.value: row.found[0] for row in rows}
    assert verdicts["steps to 95 %, NoNorm"] == 500
    assert verdicts["steps to 95 %, NoNorm / BatchNorm"] >= 2
    assert 1 <= verdicts["growth of the 15-85 width, BatchNorm"] < 2
    assert "does not show" in second.out


def test_a_run_says_whether_it_has_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, {"norm": "NoNorm", "seed": 1})
    assert not run.has_ended
    (tmp_path / "failed").write_text("no such file")
    assert not run.has_ended
    (tmp_path / "failed").rename(tmp_path / "diverged")
    assert run.has_ended
    assert run.accuracy == 0
