"""docs/lightning.md: its blocks run in their order, in a folder of their own."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from torch import nn

from normzoo.norms import BatchNorm, Norm

PAGE = Path(__file__).parents[2] / "docs" / "lightning.md"
THEIRS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B writes into the folder of the test alone, and has finished when it ends."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    import wandb

    wandb.finish()
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for code in BLOCKS:
        exec(compile(code, str(PAGE), "exec"), names)
    assert "verdicts: no fault found up to step 8" in capsys.readouterr().out
    assert json.loads(Path("lightning_logs/version_0/verdicts.json").read_text()) == []
    assert Path("report.html").read_text().startswith("<!doctype html>")
    for net in [*names["nets"], names["efficientnet"]]:
        assert sum(isinstance(one, Norm) for one in net.modules()) > 10
        assert not any(isinstance(one, THEIRS) for one in net.modules() if not isinstance(one, Norm))
    last = names["trainer"].global_step
    exec(compile(BLOCKS[-1].replace("max_epochs=2", "max_epochs=3"), str(PAGE), "exec"), names)
    assert (last, names["trainer"].global_step) == (8, 12)


@pytest.mark.parametrize("network", ["test_efficientnet", "test_byobnet"])
def test_networks_that_look_a_layer_up_by_its_name_have_none_of_ours(network: str) -> None:
    net = timm.create_model(network, norm_layer=BatchNorm)
    assert not any(isinstance(one, Norm) for one in net.modules())
    assert any(isinstance(one, nn.BatchNorm2d) for one in net.modules())


def test_weights_of_torch_load_into_our_layer() -> None:
    ours = timm.create_model("test_resnet", norm_layer=BatchNorm)
    with warnings.catch_warnings(action="error"):
        ours.load_state_dict(timm.create_model("test_resnet").state_dict())
