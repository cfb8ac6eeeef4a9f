"""The noise floor of a distance: what two samples of one distribution give."""

import pytest
import torch
from torch import Tensor

from normzoo.metrics import merge, moments, spread_between, w2


def independent(g: torch.Generator, batch: int, channels: int) -> Tensor:
    """(batch, channels), Gaussian, of other scales in each channel."""
    return torch.randn(batch, channels, generator=g).double() * torch.linspace(0.1, 3, channels) + 2


def images(g: torch.Generator, batch: int, channels: int) -> Tensor:
    """(batch, channels, 64), whose positions share brightness and contrast."""
    contrast = torch.rand(batch, channels, 1, generator=g) + 0.5
    x = torch.randn(batch, channels, 1, generator=g) + contrast * torch.randn(batch, channels, 64, generator=g)
    return x.double()


def stacked(parts: list[Tensor]) -> list[Tensor]:
    return list(map(torch.stack, zip(*map(moments, parts), strict=True)))


@pytest.mark.parametrize("draw", [independent, images])
@pytest.mark.parametrize(
    "trained,evaluated",
    [((32,) * 8, (32,) * 8), ((32,) * 7 + (5,), (32,)), pytest.param((32,) * 8, (100, 20), marks=pytest.mark.slow)],
)
def test_two_samples_of_one_distribution_are_as_far_apart_as_the_floor(
    draw: object, trained: tuple[int, ...], evaluated: tuple[int, ...]
) -> None:
    """Over 300 runs: mean of W2^2, and mean of floor^2."""
    g, squares, floors = torch.Generator().manual_seed(0), [], []
    for _ in range(300):
        q_parts, p_parts = (stacked([draw(g, size, 20) for size in sizes]) for sizes in (trained, evaluated))  # type: ignore[operator]
        p, q = merge(*p_parts), merge(*q_parts)
        squares.append((w2(p, q).square() / q.var).mean())
        floors.append((spread_between(*q_parts) * (1 / p.n + 1 / q.n) / q.var).mean())
    assert torch.stack(floors).mean().item() == pytest.approx(torch.stack(squares).mean().item(), rel=0.07)
