"""`fold`: the output of networks of all kinds stays the same, and what would change it is not folded."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations
from torchvision.ops import FrozenBatchNorm2d

from normzoo import norms
from normzoo.errors import InputError
from normzoo.models import MLP, ConvNet, ResNet
from normzoo.surgery import fold, undo


def trained(net: nn.Module) -> nn.Module:
    """In evaluation, with parameters and running statistics that are not those of the start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.1 if p.any() else 0.02)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.split(".")[-1] in ("running_var", "running_scale", "running_square"):
                buffer.uniform_(0.5, 2)
    return net.eval()


def folded_of(net: nn.Module, x: Any, tolerance: float = 1e-5) -> dict[str, str | None]:
    """Layer -> why it stays, None if it was folded; the output is the same, and `undo` restores every bit."""
    original, before = copy.deepcopy(net), dict(net.named_modules())
    with torch.no_grad():
        expected = net(x)
        report = fold(net, x)
        y = net(x)
        assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    reasons = {row["layer"]: row["stays because"] for row in report.rows}
    assert str(report).count("\n") == len(report.rows) + 2
    undo(report)
    assert dict(net.named_modules()) == before
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), original.state_dict().values(), strict=True)
    )
    return reasons


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(6, 8), nn.BatchNorm1d, (3, 6)),
    "Conv1d": (lambda: nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d, (3, 6, 5)),
    "Conv2d without bias": (lambda: nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d, (3, 6, 5, 5)),
    "Conv2d of groups": (lambda: nn.Conv2d(6, 8, 3, groups=2, stride=2), nn.BatchNorm2d, (3, 6, 5, 5)),
    "Conv3d": (lambda: nn.Conv3d(6, 8, 2), nn.BatchNorm3d, (3, 6, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 8, 3), nn.BatchNorm1d, (3, 6, 5)),
    "ConvTranspose2d of groups": (lambda: nn.ConvTranspose2d(6, 8, 3, 2, groups=2), nn.BatchNorm2d, (3, 6, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(6, 8, 2, bias=False), nn.BatchNorm3d, (3, 6, 3, 3, 3)),
    "no affine": (lambda: nn.Conv2d(6, 8, 3), lambda c: nn.BatchNorm2d(c, affine=False), (3, 6, 5, 5)),
    "SyncBatchNorm": (lambda: nn.Conv2d(6, 8, 3), nn.SyncBatchNorm, (3, 6, 5, 5)),
    "FrozenBatchNorm2d": (lambda: nn.Conv2d(6, 8, 3), FrozenBatchNorm2d, (3, 6, 5, 5)),
    "BatchNormAct2d": (lambda: nn.Conv2d(6, 8, 3), timm.layers.BatchNormAct2d, (3, 6, 5, 5)),
    "channels last": (lambda: nn.Linear(6, 8), lambda c: norms.BatchNorm(c, channel_dim=-1), (3, 5, 6)),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3)),
        nn.BatchNorm2d,
        (3, 6, 5, 5),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_goes_into_the_layer_before_it(name: str, dtype: torch.dtype) -> None:
    layer, norm, shape = PAIRS[name]
    net = trained(nn.Sequential(layer(), norm(8), nn.Dropout(), norm(8))).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    if name == "BatchNormAct2d":  # its activation is between the norms
        assert folded_of(net, x, tolerance)["1"] is None
        fold(net, x)
        assert isinstance(net[1], nn.ReLU)
        return
    assert not any(folded_of(net, x, tolerance).values())
    fold(net, x)
    assert isinstance(net[1], nn.Identity)


@pytest.mark.parametrize("name", ["Linear", "Conv2d without bias", "Conv2d of groups", "ConvTranspose1d"])
def test_equals_torchs_fusion(name: str) -> None:
    layer, norm, shape = PAIRS[name]
    net = trained(nn.Sequential(layer(), norm(8)))
    if name == "Linear":
        theirs: nn.Module = fusion.fuse_linear_bn_eval(net[0], net[1])
    else:
        theirs = fusion.fuse_conv_bn_eval(net[0], net[1], transpose="Transpose" in name)
    fold(net, torch.randn(shape))
    assert torch.allclose(net[0].weight, theirs.weight, atol=1e-6)
    assert torch.allclose(net[0].bias, theirs.bias, atol=1e-6)


FOLDING = [name for name, layer in norms.layers().items() if layer.facts.folds]


@pytest.mark.parametrize("name", FOLDING)
def test_every_norm_that_says_so_is_folded(name: str) -> None:
    """And a weight norm becomes a plain weight."""
    net, x = trained(ConvNet((3, 8, 8), 5, widths=(4, 6), norm=norms.layers()[name])), torch.randn(2, 3, 8, 8)
    if name == "NoNorm":
        with pytest.raises(InputError, match="no norms"):
            fold(net, x)
        return
    folded_of(net, x)
    rows = fold(net, x).rows
    assert [row["stays because"] for row in rows if row["kind"] == name] == [None, None]


class Attention(nn.Module):
    """Three linear layers read one norm."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(6)
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)) + y.shape[0]


class OwnRMSNorm(nn.RMSNorm):
    """As many libraries write it: it needs its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape) * self.weight


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm, nn.RMSNorm, OwnRMSNorm, lambda c: norms.RMSNorm(c, channel_dim=-1)],
    ids=["LayerNorm", "RMSNorm", "own", "normzoo"],
)
def test_weight_and_bias_go_into_all_layers_that_read_them(norm: Callable[[int], nn.Module]) -> None:
    net, x = trained(Attention(norm)), torch.randn(2, 5, 6)
    assert folded_of(net, x, 1e-6) == {"norm": None}
    fold(net, x)
    assert net.norm.weight is None or bool((net.norm.weight == 1).all())


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (nn.Conv2d(4, 5, 3), None),
        (nn.Conv2d(4, 6, 3, groups=2), None),
        (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), None),
        (nn.Conv2d(4, 5, 3, padding=1), "2 pads its output with zeros"),
        (nn.Conv2d(4, 5, 3, padding="same"), "2 pads its output with zeros"),
        (nn.ConvTranspose2d(4, 5, 3), "2 reads its output"),
        (nn.ReLU(), "2 reads its output"),
        (nn.Identity(), "the network returns its output"),
    ],
    ids=str,
)
def test_a_norm_behind_an_activation_goes_into_the_layer_behind_it(after: nn.Module, why: str | None) -> None:
    net = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), after))
    reason = folded_of(net, torch.randn(2, 4, 6, 6))["1"]
    assert reason == (why and f"no linear layer before it; {why}")


class Wired(nn.Module):
    """A convolution and its norm, connected as a function says."""

    def __init__(self, forward: Callable[["Wired", Tensor], Any], conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv or nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.wiring = forward

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


class Standardized(nn.Conv2d):
    """Computes with another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


def residual(net: Wired, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + y


def in_place(net: Wired, x: Tensor) -> Tensor:
    return net.norm(nn.functional.relu(net.conv(x), inplace=True))


def beside(branch: nn.Module) -> nn.Module:
    """A norm that reads what a branch reads, whose own norm is folded first."""
    net = Wired(lambda net, x: (y := net.conv(x), net.norm(y) + net.branch(y))[1])
    norm = net.norm
    del net.norm
    net.branch, net.norm = branch, norm
    return net


def quantized() -> nn.Module:
    from torch.ao.nn.qat import Conv2d
    from torch.ao.quantization import disable_observer, get_default_qat_qconfig

    layer = Conv2d(4, 4, 1, qconfig=get_default_qat_qconfig("fbgemm"))
    layer(torch.randn(2, 4, 5, 5))
    return layer.apply(disable_observer)


STAY: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "read by a sum, too": (lambda: Wired(residual), "the network itself reads its input, too"),
    "read by a layer that another norm was folded into": (
        lambda: beside(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        "branch.0 reads its input, too",
    ),
    "read by a norm whose weight was folded": (
        lambda: beside(nn.Sequential(norms.ChannelLayerNorm(4), nn.Conv2d(4, 4, 1))),
        "branch.0 reads its input, too",
    ),
    "changed in place": (lambda: Wired(in_place), "the network itself reads its input, too"),
    "convolution runs twice": (
        lambda: Wired(lambda net, x: net.norm(net.conv(net.conv(x)))),
        "no linear layer before it",
    ),
    "norm runs twice": (lambda: Wired(lambda net, x: net.norm(net.norm(net.conv(x)))), "it does not run once, on one"),
    "never runs": (lambda: Wired(lambda net, x: net.conv(x)), "it does not run once, on one tensor"),
    "weight is read elsewhere": (
        lambda: Wired(lambda net, x: net.norm(net.conv(x)) + nn.functional.conv2d(x, net.conv.weight)),
        "no linear layer before it",
    ),
    "standardized weight": (
        lambda: Wired(lambda net, x: net.norm(net.conv(x)), Standardized(4, 4, 1)),
        "conv computes with another weight than its own",
    ),
    "quantization-aware": (
        lambda: Wired(lambda net, x: net.norm(net.conv(x)), quantized()),
        "no linear layer before it",
    ),
}


@pytest.mark.parametrize("what", STAY)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_stays_where_folding_would_change_the_output(what: str) -> None:
    build, why = STAY[what]
    net = trained(build())
    reasons = folded_of(net, torch.randn(2, 4, 5, 5))
    assert str(reasons["norm"]).startswith(why)


def test_shared_modules_keep_all_their_names() -> None:
    net = Wired(lambda net, x: net.norm(net.conv(x)))
    net.again = net.conv
    assert folded_of(trained(net), torch.randn(2, 4, 5, 5)) == {"norm": None}
    fold(net, torch.randn(2, 4, 5, 5))
    assert net.again is net.conv


def test_takes_dictionaries_and_wrapped_networks() -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(1, 3, 6, 6)
    expected = net(x)
    report = fold(torch.compile(net), {"input": x})
    assert report.rows[0]["folded into"] == "0"
    assert torch.allclose(net(x), expected, atol=1e-5)


def test_in_a_transformer_layer_of_torch() -> None:
    """It computes its norms itself in evaluation, from their weights, unless told not to."""
    net = trained(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True))
    assert list(folded_of(net, torch.randn(2, 5, 8)).values()).count(None) == 1
    assert net.activation_relu_or_gelu == 1


def test_infinite_outputs_may_stay_infinite() -> None:
    net = trained(Wired(lambda net, x: net.norm(net.conv(x)).masked_fill(x > 1, -torch.inf)))
    assert fold(net, torch.randn(2, 4, 5, 5)).rows[0]["folded into"] == "conv"


def half_trained() -> nn.Module:
    net = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    net[1].train()
    return net


def hides_a_layer() -> nn.Module:
    net = Wired(lambda net, x: net.norm(net.hidden[0](x)))
    net.hidden = [net.conv]  # a list, which a replacement does not reach
    return trained(net)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).train(), "training mode"),
        (trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).to("meta"), "meta device"),
        (half_trained(), "1 is in training mode"),
        (nn.Sequential(nn.Conv2d(4, 4, 1)).eval(), "no norms"),
        (trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).half(), "fold it in float32"),
        (trained(Wired(lambda net, x: net.norm(net.conv(x)) + net.norm.eps)), "does not run when its norms are folded"),
        (hides_a_layer(), "would change by"),
    ],
    ids=["training", "meta", "norm in training", "no norms", "half", "reads the norm", "hidden layer"],
)
def test_refuses_and_changes_nothing(net: nn.Module, message: str) -> None:
    before, modules = copy.deepcopy(net.state_dict()), dict(net.named_modules())
    with pytest.raises(InputError, match=message):
        fold(net, torch.randn(2, 4, 5, 5))
    assert dict(net.named_modules()) == modules
    assert message == "meta device" or all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.slow
@pytest.mark.parametrize("model", [MLP, ConvNet, ResNet])
@pytest.mark.parametrize("name", norms.layers())
@pytest.mark.parametrize("position", ["before", "after"])
def test_networks_of_normzoo(model: Any, name: str, position: Any) -> None:
    layer = norms.layers()[name]
    if model is MLP and not layer.facts.dense:
        pytest.skip("needs positions")
    net = model((3, 8, 8), 5, norm=layer, norm_position=position, **({"depth": 8} if model is ResNet else {}))
    with torch.no_grad():
        net.train()(torch.randn(8, 3, 8, 8))  # some take their statistics from the first batch
    if name == "NoNorm":
        return
    reasons = folded_of(trained(net), torch.randn(2, 3, 8, 8))
    if layer.facts.folds and layer.facts.acts_on == "activation" and position == "before":
        assert not any(reasons.values())


FAMILIES = {
    **dict.fromkeys(["resnet18", "efficientnet_b0", "regnet_y_400mf", "densenet121", "mobilenet_v3_small"], 64),
    **dict.fromkeys(["vgg11_bn", "convnext_tiny", "shufflenet_v2_x0_5", "mnasnet0_5"], 64),
    "vit_b_16": 224,
    "swin_t": 224,
    "inception_v3": 96,
    "googlenet": 96,
}
OF_TIMM = {
    **dict.fromkeys(["resnet18", "efficientnet_b0", "regnety_002", "densenet121", "mobilenetv3_small_100"], 64),
    **dict.fromkeys(["vgg11_bn", "convnext_atto", "repvgg_a0", "ghostnet_050"], 64),
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "inception_v3": 96,
}
ALL = {"resnet18", "efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_small", "vgg11_bn", "regnety_002", "ghostnet_050"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("library", [torchvision, timm])
@pytest.mark.parametrize("name", sorted({*FAMILIES, *OF_TIMM}))
def test_networks_of_others(library: Any, name: str) -> None:
    size = (FAMILIES if library is torchvision else OF_TIMM).get(name)
    if size is None:
        pytest.skip("of the other library")
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)() if library is torchvision else timm.create_model(name)
    reasons = folded_of(trained(net), torch.randn(1, 3, size, size))
    assert None in reasons.values()
    if name in ALL:
        assert not any(reasons.values())
