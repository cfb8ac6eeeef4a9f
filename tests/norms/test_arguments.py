"""What layers of other libraries take, ours take; device, dtype, resetting, and the axis of the channels, for all."""

import inspect
import subprocess
import sys
from abc import ABC
from pathlib import Path
from typing import Any

import pytest
import torch
from counterparts import COUNTERPARTS, FACTORY, Counterpart
from laws import (
    assert_close,
    assert_same_buffers,
    tests_of,
)
from torch import Tensor, nn

from normzoo import norms
from normzoo.errors import InputError
from normzoo.norms import Norm
from normzoo.testing import arguments
from normzoo.testing.arguments import channels_last

globals().update(tests_of(arguments))  # the laws that hold for layers outside the zoo, too

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.parametrize("pair", COUNTERPARTS, ids=lambda pair: f"{pair.theirs}-{pair.ours.__name__}")
def test_counterparts(pair: Counterpart) -> None:
    """Ours takes every argument of theirs by the same name, at the same position and with the same default, or says
    otherwise in a reason; and every reason is needed."""
    pytest.importorskip(pair.package)
    theirs, ours = pair.signature(), inspect.signature(pair.ours).parameters
    assert set(theirs) - set(ours) == set(pair.absent)
    by_position = [p.name for p in ours.values() if p.kind is not p.KEYWORD_ONLY and p.name not in pair.moved]
    ordered = pair.ordered()
    assert by_position[1 : 1 + len(ordered)] == ordered, "another order"
    shared = {name: ours[pair.names.get(name, name)] for name in theirs if name in ours}
    differ = {name for name, p in shared.items() if p.default != theirs[name].default}
    assert differ - {"num_features", *FACTORY} == set(pair.others), "defaults"
    card = inspect.getdoc(pair.ours)
    assert card is not None
    assert all(f"{name}:" in card for name in pair.others)


OURS: dict[type[nn.Module], list[type[Norm]]] = {
    **{theirs: [norms.BatchNorm, norms.TorchBatchNorm] for theirs in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)},
    **{theirs: [norms.InstanceNorm] for theirs in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)},
    nn.GroupNorm: [norms.GroupNorm],
    nn.LayerNorm: [norms.LayerNorm],
    nn.RMSNorm: [norms.RMSNorm],
    nn.LocalResponseNorm: [norms.LocalResponseNorm],
}


@pytest.mark.slow  # importing torch's test suite takes seconds
def test_module_samples(tmp_path: Path) -> None:
    """Ours computes what torch's layer does for every sample of torch's own test suite: outputs, gradients, state.

    Samples without an axis of samples get one. Not compared: whether an empty batch, or InstanceNorm, counts batches.
    """
    pytest.importorskip("expecttest")  # torch's test suite needs it
    file = tmp_path / "samples.pt"
    subprocess.run([sys.executable, HELPERS / "module_samples.py", file], check=True, capture_output=True)
    found = torch.load(file, weights_only=False)
    assert {sample["theirs"] for sample in found} == set(OURS)
    for sample in found:
        theirs = sample["theirs"]
        x = sample["x"].unsqueeze(0) if "no_batch_dim" in sample["about"] else sample["x"]
        for kind in OURS[theirs]:
            ours, other = built(kind, sample, x.shape[1]).to(x.dtype), theirs(*sample["args"], **sample["kwargs"])
            other = other.to(x.dtype)
            with torch.no_grad():
                for p in ours.parameters():
                    p.add_(torch.linspace(-0.4, 0.4, p.numel()).view_as(p))
            other.load_state_dict(ours.state_dict(), strict=True)
            for training in (True, True, False):
                observed, expected = (results(module.train(training), x) for module in (ours, other))
                tolerance = 1e-5 if x.dtype == torch.float32 else 1e-9
                for name, value in expected.items():
                    counts = name == "num_batches_tracked" and (len(x) == 0 or kind is norms.InstanceNorm)
                    if not counts:
                        assert_close(observed[name], value, f"{name} of {sample}", tolerance)


def built(kind: type[Norm], sample: dict[str, Any], channels: int) -> Norm:
    """Our layer by the arguments of torch's, and torch's defaults where ours differ."""
    args, kwargs = sample["args"], dict(sample["kwargs"])
    if kind is norms.GroupNorm:
        args = [args[1], args[0], *args[2:]]
    elif kind is norms.LocalResponseNorm:
        args = [channels, *args]
        kwargs = {"alpha": 1e-4, "k": 1.0, **kwargs} if len(args) == 2 else kwargs
    elif kind is norms.InstanceNorm and len(args) < 4:
        kwargs = {"affine": False, **kwargs}
    return kind(*args, **kwargs)


def results(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and state after a forward and a backward pass."""
    x = x.clone().requires_grad_()
    y = module(x)
    names = [name for name, _ in module.named_parameters()]
    g = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], dy)
    found = dict(zip(["dx", *(f"d {name}" for name in names)], gradients, strict=True))
    return {"output": y.detach(), **found, **{name: t.clone() for name, t in module.state_dict().items()}}


class Renamed(norms.BatchNorm):
    """A subclass that passes on what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OwnDevice(norms.BatchNorm):
    """A subclass with an argument that all layers take."""

    def __init__(self, num_features: int, device: str = "cpu") -> None:
        super().__init__(num_features)
        self.device = device


def test_subclasses_take_what_the_layer_takes() -> None:
    """By position as by name, and an argument that the subclass names itself is its own."""
    layer = Renamed(8, 0.1, 0.2, dtype=torch.float64, channel_dim=-1)
    assert (layer.eps, layer.momentum, layer.channel_dim, layer.weight.dtype) == (0.1, 0.2, -1, torch.float64)
    own = OwnDevice(8, "a name", dtype=torch.float64)
    assert (own.device, own.weight.dtype) == ("a name", torch.float64)
    with pytest.raises(TypeError, match=r"OwnDevice\(\): got an unexpected keyword argument 'epsilon'"):
        OwnDevice(8, epsilon=1)
    assert issubclass(type("Abstract", (norms.BatchNorm, ABC), {}), norms.BatchNorm)


def test_what_has_no_position_is_not_taken_by_position() -> None:
    """Above all not as a device."""
    for layer in norms.layers().values():
        kinds = [p.kind for p in inspect.signature(layer).parameters.values()]
        if kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 1:
            with pytest.raises(TypeError, match=rf"{layer.__name__}\(\): too many positional arguments"):
                layer(8, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rms_norm_without_eps(dtype: torch.dtype) -> None:
    """`eps=None` is torch's, few values and many."""
    for shape in ((2, 3, 8), (40, 60, 8)):
        x = torch.full(shape, 1e-3, dtype=dtype)
        layer = norms.RMSNorm(8, eps=None, channel_dim=-1, dtype=dtype)
        assert_close(layer(x), nn.RMSNorm(8, eps=None, dtype=dtype)(x), tolerance=torch.finfo(dtype).eps)


def test_a_shape_has_no_channel_dim() -> None:
    with pytest.raises(InputError, match=r"LayerNorm\(\(4, 4\), channel_dim=-1\): .*last axes"):
        norms.LayerNorm([4, 4], channel_dim=-1)(torch.randn(2, 4, 4))


@pytest.mark.parametrize("norm", [norms.BatchNorm, norms.TorchBatchNorm])
def test_statistics_that_are_taken_away(norm: type[Norm]) -> None:
    """As test-time adaptation does it: then evaluation normalizes by the batch, as torch's layer does."""
    outputs = []
    for kind in (norm, nn.BatchNorm2d):
        layer = kind(8).eval()
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        outputs.append(layer(torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))))
    assert_close(*outputs, tolerance=1e-5)


def test_instance_norm_stops_tracking_as_torchs_does() -> None:
    ours, theirs = norms.InstanceNorm(8, track_running_stats=True), nn.InstanceNorm1d(8, track_running_stats=True)
    x = torch.randn(4, 8, 5)
    for layer in (ours, theirs):
        layer(x)
        layer.eval().track_running_stats = False
    assert_close(ours(x), theirs(x), tolerance=1e-5)


def test_torch_batch_norm_without_eps() -> None:
    """torch's kernel refuses an eps of 0."""
    x = torch.randn(16, 8)
    layer, ours = norms.TorchBatchNorm(8, eps=0), norms.BatchNorm(8, eps=0)
    assert_close(layer(x), ours(x))
    assert_same_buffers(layer, ours)


def test_reset_under_another_default_device() -> None:
    layer = norms.BatchNorm(8)
    layer.weight.data.fill_(3)
    with torch.device("meta"):
        layer.reset_parameters()
    assert (layer.weight == 1).all()


def test_a_repr_says_what_a_layer_was_built_with() -> None:
    said = {
        norms.BatchNorm(8, bias=False): "8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, bias=False",
        norms.LayerNorm([8, 3]): "(8, 3), eps=1e-05, affine=True",
        norms.DynamicTanh(8, channel_dim=-1): "8, channel_dim=-1",
        norms.WeightStandardization(8, dim=1): "8, eps=1e-05, dim=1",
    }
    for layer, text in said.items():
        assert layer.extra_repr().startswith(text)


def test_a_parametrized_layer_is_reset() -> None:
    """What it has of its own is; the parameters of the parametrization are not the layer's."""
    layer = norms.BatchNorm(8)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    layer(torch.randn(4, 8))
    layer.bias.data.fill_(3)
    layer.reset_parameters()
    assert not layer.bias.any()
    assert not layer.running_mean.any()


def test_mask_with_channels_last() -> None:
    """A mask has no axis of channels, wherever the input has it."""
    x, mask = torch.randn(4, 8, 5), torch.rand(4, 5) > 0.3
    layer, last = norms.BatchNorm(8), norms.BatchNorm(8, channel_dim=-1)
    assert_close(last(channels_last(x), mask), layer(x, mask).movedim(1, -1))
    assert_same_buffers(last, layer)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_window_of_one_value_is_refused(axis: int) -> None:
    """Wherever the channels are: they are no positions of the window."""
    layer = norms.LocalContextNorm(8, num_groups=8, channel_dim=axis)
    with pytest.raises(InputError, match="one value per window"):
        layer(torch.ones(2, 8, 1, 1).movedim(1, axis))
