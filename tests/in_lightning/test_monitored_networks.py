"""Monitors and layers in torchvision's and timm's networks: they run, say what is there, and change nothing."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from plain_lightning import NETWORKS, Task, found, monitors, result, train
from torch import nn

from normzoo.norms import Norm

pytestmark = pytest.mark.filterwarnings("ignore:The Trainer has no logger")
FAST = ("timm-vit", "convnext")
CASES = [
    pytest.param(
        network, norm, id=f"{network}-{getattr(norm, 'func', norm).__name__ if norm else 'unchanged'}",
        marks=() if network in FAST and norm is [None, *ours][-1] else pytest.mark.slow,
    )
    for i, (network, (_, ours)) in enumerate(NETWORKS.items())
    for norm in (ours[-1:] if i % 2 and ours else [None, *ours[-1:]])  # every second one also as it is
]  # fmt: skip


def task(network: str, norm: Any) -> Task:
    return Task(NETWORKS[network][0](**({} if norm is None else {"norm_layer": norm})))


@pytest.mark.parametrize("network, norm", CASES)
def test_all_monitors_watch_and_leave_the_training_as_it_is(network: str, norm: Any) -> None:
    off = train(partial(task, network, norm), [])
    without = result(off)
    on = train(partial(task, network, norm), monitors())
    assert all(torch.equal(value, without[name]) for name, value in result(on).items())

    shown = found(on)
    has_batch_norm = any(isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d) for one in on.lightning_module.modules())
    expected = {"flow_norm", "update_ratio", "drift_w2", "val_w2", "input_p50", "ics_relative", "loss_range"}
    expected |= {"running_w2"} if has_batch_norm else set()
    assert expected <= {metric for metric, values in shown.items() if values}
    assert all(math.isfinite(value) for metric in expected for value in shown[metric].values())
    weighted = [name for name, one in on.lightning_module.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len(shown["flow_norm"]) >= 0.8 * len(weighted)  # all but those of attention, which torch reads itself
    assert sum(isinstance(one, Norm) for one in on.lightning_module.modules()) > 1 or norm is None
