"""`recalibrate` and `adapt` on two ranks, each with its own share of the data."""

import copy
from collections.abc import Callable

import pytest
import torch
from ranks import TwoRanks
from torch import Tensor, nn

from normzoo import norms
from normzoo.errors import InputError
from normzoo.surgery import adapt, recalibrate

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "SyncBatchNorm": nn.SyncBatchNorm,
    "synced": lambda channels: norms.BatchNorm(channels, sync=True),
    "RangeBatchNorm": norms.RangeBatchNorm,
}
BATCHES = [
    torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n)) * (i + 1) + 10 * i
    for i, n in enumerate((5, 8, 2))
]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), LAYERS[name](4), nn.Dropout(), nn.Conv2d(4, 6, 3), LAYERS[name](6)).eval()


def recalibrated(name: str, share: tuple[int, ...]) -> dict[str, Tensor]:
    net = network(name)
    recalibrate(net, [BATCHES[i] for i in share])
    return net.state_dict()


def adapted(name: str, share: tuple[int, ...]) -> dict[str, Tensor]:
    net = network(name)[:2]
    adapt(net, [BATCHES[i] for i in share], prior=4)
    return net.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("job", [recalibrated, adapted])
@pytest.mark.parametrize("name", LAYERS)
def test_two_ranks_agree_and_equal_one(two_ranks: TwoRanks, name: str, job: Callable[..., dict[str, Tensor]]) -> None:
    """Also if one has more batches than the other, and if one has none."""
    if job is adapted and name == "RangeBatchNorm":
        return  # its statistics cannot be mixed
    whole = job(name, (0, 1, 2))
    for shares in (((0, 2), (1,)), ((), (0, 1, 2))):
        ours, theirs = two_ranks.run(job, (name, name), shares)
        for key, value in whole.items():
            assert torch.equal(ours[key], theirs[key]), key
            assert torch.allclose(ours[key], value, rtol=1e-6, atol=1e-6), key


def refused(batches: list[Tensor]) -> str:
    net = network("BatchNorm2d")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError) as raised:
        recalibrate(net, batches)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return str(raised.value)


@pytest.mark.slow
def test_all_ranks_refuse_what_one_refuses(two_ranks: TwoRanks) -> None:
    first, second = two_ranks.run(refused, ([torch.full((2, 3, 6, 6), torch.nan)], BATCHES))
    assert "the input of 1 has NaN" in first
    assert "rank 0 has failed" in second
    assert all("no batches" in message for message in two_ranks.run(refused, ([], [])))
