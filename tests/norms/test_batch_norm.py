"""BatchNorm behaves as torch's batch norm in all that a user sees, and takes inputs that torch refuses.

The laws compare it with the paper; these tests compare it with `torch.nn.BatchNorm1d`, `2d` and `3d`.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

from normzoo.errors import InputError
from normzoo.norms import BatchNorm, GhostBatchNorm, TorchBatchNorm

C = 6
SHAPES = {"NC": (7, C), "NCL": (5, C, 4), "NCHW": (4, C, 5, 3), "NCDHW": (3, C, 2, 3, 4), "large": (24, C, 20, 18)}
TORCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None},
    "still": {"momentum": 0.0},
    "bare": {"affine": False},
    "untracked": {"track_running_stats": False},
    "bare-untracked": {"affine": False, "track_running_stats": False},
    "large-eps": {"eps": 0.3, "momentum": 0.9},
    "cumulative-bare": {"momentum": None, "affine": False},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def pair(shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype) -> tuple[BatchNorm, nn.Module]:
    """Ours and torch's, in the same state, which is not that of the start."""
    theirs = TORCH[len(shape)](C, **settings).to(dtype)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.rand(C, generator=g) + 0.5)
    ours = BatchNorm(C, **settings).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def batch(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 1).to(dtype)


def step(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a user sees of one step: output, gradients, state."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))
    assert x.grad is not None
    gradients = {f"gradient of {n}": p.grad for n, p in layer.named_parameters() if p.grad is not None}
    state = {n: b.clone() for n, b in layer.named_buffers()}
    return {"y": y.detach(), "gradient of x": x.grad, **gradients, **state}


def assert_alike(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float) -> None:
    a, b = step(ours, x), step(theirs, x)
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert a[name].dtype == value.dtype, name
        scale = max(1.0, value.abs().max().item()) if value.is_floating_point() else 1.0
        assert torch.allclose(a[name] / scale, value / scale, rtol=tolerance, atol=tolerance), name


TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}


@every_shape
@every_setting
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_torch_step_by_step(shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = pair(shape, settings, dtype)
    for seed, training in enumerate((True, True, False, True, False)):
        ours.train(training)
        theirs.train(training)
        assert_alike(ours, theirs, batch(shape, seed, dtype), TOLERANCE[dtype])


@every_shape
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_equals_torch_under_autocast(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs = pair(shape, {}, torch.float32)
    for seed, training in enumerate((True, True, False)):
        ours.train(training)
        theirs.train(training)
        for x in (batch(shape, seed, torch.float32), batch(shape, seed, dtype)):
            with torch.autocast("cpu", dtype=dtype):
                tolerance = 2e-5 if x.dtype == torch.float32 else 2 * torch.finfo(dtype).eps
                assert_alike(ours, theirs, x, tolerance)


@every_shape
@every_setting
def test_state_loads_both_ways(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    ours, theirs = pair(shape, settings, torch.float64)
    step(ours, batch(shape, 0))
    step(theirs, batch(shape, 1))
    to_theirs, to_ours = copy.deepcopy(theirs), copy.deepcopy(ours)
    to_theirs.load_state_dict(ours.state_dict(), strict=True)
    to_ours.load_state_dict(theirs.state_dict(), strict=True)
    x = batch(shape, 2)
    for a, b in ((to_theirs, ours), (to_ours, theirs)):
        torch.testing.assert_close(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("shape", [(1, C), (1, C, 1), (1, C, 1, 1), (1, C, 1, 1, 1)], ids=str)
def test_one_value_raises_where_torch_raises(shape: tuple[int, ...]) -> None:
    for training, tracked in ((True, True), (True, False), (False, False), (False, True)):
        ours, theirs = (
            build(C, track_running_stats=tracked).train(training) for build in (BatchNorm, TORCH[len(shape)])
        )
        refused = []
        for layer in (ours, theirs):
            try:
                layer(torch.ones(shape))
                refused.append(False)
            except ValueError:
                refused.append(True)
        assert refused[0] == refused[1] == (training or not tracked)
        assert ours.num_batches_tracked is None or ours.num_batches_tracked == 0


def test_wrong_inputs_raise_where_torch_raises() -> None:
    for theirs, shapes in (
        (nn.BatchNorm1d(C), [(C,), (4, C + 1), (4, C + 1, 3)]),
        (nn.BatchNorm2d(C), [(4, C - 1, 3, 3), (C,)]),
    ):
        for shape in shapes:
            for layer in (theirs, BatchNorm(C)):
                with pytest.raises((ValueError, RuntimeError)):
                    layer(torch.randn(shape))
    for layer in (nn.BatchNorm1d(C), BatchNorm(C)):
        with pytest.raises((ValueError, RuntimeError)):
            layer(torch.ones(4, C, dtype=torch.int64))


@every_shape
def test_an_empty_batch_passes_as_in_torch(shape: tuple[int, ...]) -> None:
    """Running mean and variance stay, and gradients are zero. Torch counts the batch; we do not."""
    for settings in ({}, {"momentum": None}, {"affine": False}):
        ours, theirs = pair(shape, settings, torch.float64)
        a, b = (step(layer, batch((0, *shape[1:]), 0)) for layer in (ours, theirs))
        assert a.keys() == b.keys()
        for name in a.keys() - {"num_batches_tracked"}:
            torch.testing.assert_close(a[name], b[name])
        assert (a["num_batches_tracked"], b["num_batches_tracked"]) == (0, 1)


# Where torch stops.


def test_statistics_stay_float32_in_a_narrow_layer() -> None:
    layer = BatchNorm(C).bfloat16()
    assert layer.weight is not None
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32
    for seed in range(200):  # bfloat16 would stand still at 128
        layer(batch((64, C), seed, torch.bfloat16) + 300)
    torch.testing.assert_close(layer.running_mean, torch.full((C,), 301.0), atol=1.0, rtol=0)


@every_shape
def test_transforms_of_torch_func(shape: tuple[int, ...]) -> None:
    """In training, with running statistics: torch raises here. A transformed function leaves them as they are."""
    layer = BatchNorm(C).double()
    x = batch(shape, 0)[:, :, ...]
    before = copy.deepcopy(layer.state_dict())

    def loss(x: Tensor) -> Tensor:
        return layer(x).pow(3).sum()

    plain = x.clone().requires_grad_()
    copied = copy.deepcopy(layer)
    copied(plain).pow(3).sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(grad(loss)(x), plain.grad)
    xs = torch.stack([batch(shape, seed) for seed in range(3)])
    torch.testing.assert_close(vmap(layer)(xs), torch.stack([copy.deepcopy(layer)(x) for x in xs]))
    torch.testing.assert_close(vmap(grad(loss))(xs)[0], plain.grad)
    if x.numel() < 100:
        jacobian = jacrev(layer)(x)
        torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(copied, x))
        torch.testing.assert_close(
            hessian(loss)(x), torch.autograd.functional.hessian(lambda x: copied(x).pow(3).sum(), x)
        )
    assert all(torch.equal(before[n], v) for n, v in layer.state_dict().items())


def test_statistics_that_are_handed_over_move_under_transforms() -> None:
    layer = BatchNorm(C).double()
    x = batch((7, C), 0)
    parameters = dict(layer.named_parameters())

    def loss(x: Tensor, buffers: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        buffers = {n: b.clone() for n, b in buffers.items()}
        return functional_call(layer, {**parameters, **buffers}, (x,)).pow(3).sum(), buffers

    _, moved = grad(loss, has_aux=True)(x, dict(layer.named_buffers()))
    stacks = {n: torch.stack([b, b]) for n, b in layer.named_buffers()}
    _, batched = vmap(loss)(torch.stack([x, x + 1]), stacks)
    layer(x)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(moved[name].detach(), buffer)
        torch.testing.assert_close(batched[name][0].detach(), buffer)
    torch.testing.assert_close(batched["running_mean"][1].detach(), layer.running_mean + 0.1)


def masks(shape: tuple[int, ...]) -> dict[str, Tensor]:
    size = (shape[0], *shape[2:])
    some = torch.rand(size, generator=torch.Generator().manual_seed(8)) < 0.6
    some.view(-1)[:2] = True
    return {"some": some, "all": torch.ones(size, dtype=torch.bool)}


@every_shape
@pytest.mark.parametrize("kind", ["some", "all"])
@pytest.mark.parametrize("settings", [SETTINGS[n] for n in ("default", "cumulative", "bare", "untracked")])
def test_a_mask_leaves_padding_out(shape: tuple[int, ...], kind: str, settings: dict[str, Any]) -> None:
    """As if the values that count stood alone, as rows (M, C)."""
    masked, alone = BatchNorm(C, **settings).double(), BatchNorm(C, **settings).double()
    mask = masks(shape)[kind]
    for seed, training in enumerate((True, True, False)):
        masked.train(training)
        alone.train(training)
        x = batch(shape, seed)
        x.movedim(1, -1)[~mask] = math.nan  # whatever it holds
        x = x.requires_grad_()
        rows = x.detach().movedim(1, -1)[mask].requires_grad_()
        y, expected = masked(x, mask), alone(rows)
        torch.testing.assert_close(y.movedim(1, -1)[mask], expected)
        assert not y.movedim(1, -1)[~mask].any()
        y.pow(3).sum().backward()
        expected.pow(3).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad.movedim(1, -1)[mask], rows.grad)
        assert not x.grad.movedim(1, -1)[~mask].any()
        for name, buffer in masked.named_buffers():
            torch.testing.assert_close(buffer, alone.get_buffer(name))
        for name, parameter in masked.named_parameters():
            torch.testing.assert_close(parameter.grad, alone.get_parameter(name).grad)


def test_a_mask_of_padding_alone_moves_nothing() -> None:
    layer = BatchNorm(C)
    y = layer(torch.randn(4, C, 5), torch.zeros(4, 5, dtype=torch.bool))
    assert not y.any()
    assert layer.num_batches_tracked == 0
    assert layer.running_var is not None
    assert torch.equal(layer.running_var, torch.ones(C))


def test_a_mask_compiles_to_one_graph() -> None:
    eager = BatchNorm(C, momentum=None)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x, mask = batch((5, C, 4), seed, torch.float32), masks((5, C, 4))["some"].roll(seed)
        torch.testing.assert_close(compiled(x, mask), eager(x, mask))
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "mask", [torch.ones(4, 5), torch.ones(4, dtype=torch.bool), torch.ones(4, C, 5, dtype=torch.bool)], ids=str
)
def test_a_wrong_mask_raises(mask: Tensor) -> None:
    layer = BatchNorm(C)
    with pytest.raises(InputError, match=r"mask of torch\..*give one of torch.bool and shape \(4, 5\)"):
        layer(torch.randn(4, C, 5), mask)
    with pytest.raises(InputError, match="one value per channel"):
        layer(torch.randn(2, C), torch.tensor([True, False]))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(
    "amp", [nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)], ids=["plain", "amp"]
)
def test_a_large_mean_costs_no_digits(amp: Callable[[], AbstractContextManager[None]]) -> None:
    x = torch.randn(64, C, 16, 16, generator=torch.Generator().manual_seed(0)) + 1e4
    layer, parts = BatchNorm(C), GhostBatchNorm(C, ghost_size=16)
    with amp():
        for y in (layer(x), parts(x)):
            assert (y.var((0, 2, 3), correction=0) - 1).abs().max() < 2e-3
            assert y.mean((0, 2, 3)).abs().max() < 2e-3


def test_a_batch_that_the_kernel_refuses_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise RuntimeError("mixed dtypes")

    layer, x = TorchBatchNorm(C), batch(SHAPES["NCHW"], 0, torch.float32)
    monkeypatch.setattr(torch.nn.functional, "batch_norm", refuse)
    with pytest.raises(RuntimeError, match="mixed dtypes"):
        layer(x)
    assert layer.num_batches_tracked == 0
