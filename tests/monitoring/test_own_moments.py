"""What a batch normalization says of its batch equals what is read of it, and is taken only where it does."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TwoRanks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normzoo import norms
from normzoo.metrics import Moments, merge
from normzoo.monitoring import own_moments as _own_moments
from normzoo.monitoring.own_moments import OwnMoments, knows_moments
from normzoo.monitoring.probe import Probe

SHAPE = (64, 16, 9, 16)
"""Of more values than are read at once."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is read all the same."""
    found: list[tuple[int, ...]] = []
    before = _own_moments.feature_moments

    def read(module: nn.Module, x: Tensor) -> Moments | None:
        found.append(tuple(x.shape))
        return before(module, x)

    monkeypatch.setattr(_own_moments, "feature_moments", read)
    return found


def layer(**settings: Any) -> norms.BatchNorm:
    made = norms.BatchNorm(SHAPE[1], **settings)
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        nn.init.uniform_(p, 0.5, 2, generator=generator)  # of a weight near 0 the output would be all rounding
    return made


def heard(module: nn.Module, run: Callable[[], Any], sites: Sequence[str] = ("input", "output")) -> list[Any]:
    """What is told of each pass through a module."""
    own = OwnMoments([module])
    probe = Probe(nn.Sequential(module), {"0": module}, input=own.forget, passage=own.reader(sites))
    with own.listening(), probe:
        run()
    assert "update" not in vars(module)
    return [visit.passage for visit in probe.visits]


def assert_those_of(found: Moments, x: Tensor, tolerance: float = 1e-6) -> None:
    """Compares in standard deviations with the plain formula in float64."""
    x = x.detach().double().movedim(1, 0).flatten(1)
    mean, std = x.mean(1), x.std(1, correction=0)
    assert found.n.item() == x.shape[1]
    assert ((found.mean - mean).abs() <= tolerance * std).all()
    assert ((found.var.sqrt() - std).abs() <= tolerance * std).all()


def images(mean: float = 0.3, std: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    by_channel = torch.linspace(0.5, 2, shape[1]).view(-1, *[1] * (len(shape) - 2))
    return (torch.randn(shape, generator=generator) + mean) * std * by_channel


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("mean", [0.3, -1.8])
@pytest.mark.parametrize("std", [0.1, 1.0, 1e4])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-3}], ids=str)
def test_nothing_is_read_where_the_layer_knows(
    settings: dict[str, Any], std: float, mean: float, last: bool, reads: list[tuple[int, ...]]
) -> None:
    norm, x = layer(**settings), images(mean, std)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y: list[Tensor] = []
    [told] = heard(norm, lambda: y.append(norm(x)))
    assert reads == []
    assert_those_of(told["input"], x)
    assert_those_of(told["output"], y[0])


def poisoned(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[3, 2, 1, 1] = value
    return x


READ: dict[str, tuple[Callable[[], norms.BatchNorm], Callable[[], Tensor]]] = {
    "few values": (layer, lambda: images(shape=(4, 16, 3, 3))),
    "a mean far away": (layer, lambda: images(mean=1000.0)),
    "a mean beyond two deviations": (layer, lambda: images(mean=2.1)),
    "a variance below eps": (layer, lambda: images(std=1e-3)),
    "a constant": (layer, lambda: images() * torch.arange(16).view(-1, 1, 1)),
    "NaN": (layer, lambda: poisoned(images(), torch.nan)),
    "infinity": (layer, lambda: poisoned(images(), torch.inf)),
    "bfloat16": (layer, lambda: images().bfloat16()),
    "a large plane": (layer, lambda: images(shape=(1, 16, 128, 129))),
    "evaluation": (lambda: layer().eval(), images),
    "frozen": (lambda: layer().freeze(), images),
}


@pytest.mark.parametrize("case", READ)
def test_where_it_would_not_be_exact_the_values_are_read(case: str, reads: list[tuple[int, ...]]) -> None:
    make, data = READ[case]
    norm, x = make(), data()
    y: list[Tensor] = []
    [told] = heard(norm, lambda: y.append(norm(x)))
    assert reads == [tuple(x.shape)] * 2
    for site, tensor in (("input", x), ("output", y[0])):
        expected = _own_moments.feature_moments(norm, tensor.detach())
        for own, plain in zip(told[site], expected, strict=True):
            torch.testing.assert_close(own, plain, equal_nan=True)


OUTPUT = {
    "a mean beyond ten deviations": (0.01, 1.0),
    "a constant": (0.0, 1.0),
    "a weight of NaN": (torch.nan, 0.0),
    "an infinite weight": (torch.inf, 0.0),
    "a bias of NaN": (1.0, torch.nan),
}


@pytest.mark.parametrize("case", OUTPUT)
def test_an_output_that_does_not_follow_exactly_is_read(case: str, reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images()
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = OUTPUT[case]
    y: list[Tensor] = []
    [told] = heard(norm, lambda: y.append(norm(x)))
    assert reads == [SHAPE]
    assert_those_of(told["input"], x)
    expected = _own_moments.feature_moments(norm, y[0].detach())
    for own, plain in zip(told["output"], expected, strict=True):
        torch.testing.assert_close(own, plain, equal_nan=True)


def triples(module: nn.Module, *unused: Any) -> Tensor:
    return 3 * unused[-1]


def hung(norm: norms.BatchNorm) -> None:
    norm.register_forward_hook(triples)


def replaced(norm: norms.BatchNorm) -> None:
    before = norm.forward
    norm.forward = lambda x: 3 * before(x)


def moved_otherwise(norm: norms.BatchNorm) -> None:
    norm.update = lambda *unused: None


@pytest.mark.parametrize("change", [hung, replaced, moved_otherwise])
def test_a_layer_that_was_changed_does_not_know(change: Callable[[norms.BatchNorm], None]) -> None:
    norm = layer()
    assert knows_moments(norm)
    change(norm)
    assert not knows_moments(norm)


def test_a_hook_that_comes_later_is_seen_too(reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images()
    y: list[Tensor] = []
    own = OwnMoments([norm])
    with own.listening(), Probe(nn.Sequential(norm), {"0": norm}, passage=own.reader(["output"])) as probe:
        handle = norm.register_forward_hook(triples)
        y.append(norm(x))
        handle.remove()
    # As a probe does: what comes out behind the hooks that were there before it.
    assert_those_of(probe.visits[0].passage["output"], y[0] / 3)
    assert reads == [SHAPE]


def test_what_was_said_of_another_pass_is_forgotten(reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images()
    own = OwnMoments([norm])
    with (
        own.listening(),
        Probe(nn.Sequential(norm), {"0": norm}, input=own.forget, passage=own.reader(["input"])) as probe,
    ):
        norm.forward(10 * x)  # which no hook sees
        norm.eval()(x)
    assert_those_of(probe.visits[0].passage["input"], x)
    assert reads == [SHAPE]


def test_with_a_mask_the_values_are_read(reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images()
    mask = torch.rand(SHAPE[0], *SHAPE[2:]) > 0.3
    heard(norm, lambda: norm(x, mask))
    assert reads == [SHAPE] * 2


def test_every_pass_has_moments_of_its_own(reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images()
    first, second = heard(norm, lambda: (norm(x), norm(2 * x)), ["input"])
    assert reads == []
    assert_those_of(first["input"], x)
    assert_those_of(second["input"], 2 * x)


def test_a_pass_that_checkpointing_repeats_leaves_nothing_behind(reads: list[tuple[int, ...]]) -> None:
    norm, x = layer(), images().requires_grad_()

    def run() -> None:
        checkpoint(norm, x, use_reentrant=False).sum().backward()
        norm.freeze()
        norm(3 * x)

    first, second = heard(norm, run)
    assert_those_of(first["input"], x)
    assert_those_of(second["input"], 3 * x)
    assert len(reads) == 2


def test_training_is_the_same_to_the_bit_and_copies_keep_to_themselves() -> None:
    norm, plain, x = layer(), layer(), images()
    plain.load_state_dict(norm.state_dict())
    copies: list[norms.BatchNorm] = []
    heard(norm, lambda: (norm(x), copies.append(copy.deepcopy(norm)), copies[0](5 * x)))
    plain(x)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, norm.state_dict()[name])
    assert copies[0].num_batches_tracked == 2
    plain(5 * x)
    assert torch.equal(plain.running_mean, copies[0].running_mean)


def test_only_what_is_exactly_batch_normalization_knows_its_output() -> None:
    class Twice(norms.BatchNorm):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return 2 * super().forward(x, mask)

    assert knows_moments(norms.BatchNorm(3))
    made = (norms.layers()[name](12) for name in norms.layers() if name != "BatchNorm")
    assert not any(map(knows_moments, [Twice(3), nn.BatchNorm2d(3), *made]))


def told_on(share: slice) -> list[tuple[Tensor, ...]]:
    """What a rank with a share of the batch is told of the input and of the output."""
    norm, x = layer(sync=True), images()[share]
    [told] = heard(norm, lambda: norm(x))
    return [tuple(told[site]) for site in ("input", "output")]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [32, 40, 64])
def test_ranks_that_synchronize_count_each_value_once(cut: int, tmp_path: Path) -> None:
    """Whatever share each of them has, none at all included."""
    norm, x = layer(), images()
    y = norm(x)
    ranks = TwoRanks(tmp_path)
    of_ranks = ranks.run(told_on, (slice(0, cut), slice(cut, SHAPE[0])))
    ranks.close()
    for tensor, parts in zip((x, y), zip(*of_ranks, strict=True), strict=True):
        assert_those_of(merge(*(torch.stack(list(column)) for column in zip(*parts, strict=True))), tensor)
