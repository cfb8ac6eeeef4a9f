"""The norm obeys the laws of normzoo, two steps train, and every config runs."""

import pytest
from lightning.pytorch import Trainer
from normzoo.__main__ import main
from normzoo.testing import check_norm

from my_project import Data, MyNorm, Net, Task


def test_the_norm_obeys_the_laws():
    check_norm(MyNorm)


def test_two_steps_change_every_parameter(tmp_path):
    task = Task(Net(Data.input_shape, Data.num_classes))
    before = [parameter.detach().clone() for parameter in task.parameters()]
    Trainer(max_steps=2, accelerator="cpu", barebones=True).fit(task, Data(str(tmp_path / "digits")))
    assert all(not new.equal(old) and new.isfinite().all() for new, old in zip(task.parameters(), before))


@pytest.mark.parametrize("config", ["train", "deep"])
def test_a_config_runs(config, tmp_path):
    configs = ["-c", "configs/train.yaml", "-c", f"configs/{config}.yaml"]
    assert main(["fit", *configs, "--trainer.fast_dev_run=true", f"--data.folder={tmp_path / 'digits'}"]) == 0
