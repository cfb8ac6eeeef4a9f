"""The networks of torchvision and timm with other norms, each compared with a twin that is converted by hand."""

import copy
from collections.abc import Callable
from math import gcd
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms import GroupNorm, RMSNorm
from normzoo.surgery import replace, undo

SIZES = {"inception_v3": 96, "googlenet": 96}  # others 64, but for those that take one size only
ONE_SIZE = ("vit_", "pit_", "mixer_", "levit_", "efficientformer_", "xcit_")
TORCHVISION = (
    "resnet18 regnet_y_400mf regnet_x_400mf densenet121 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
    "vgg11_bn inception_v3 googlenet shufflenet_v2_x0_5 mnasnet0_5 convnext_tiny swin_t swin_v2_t"
)
TIMM = (
    "resnet10t resnetv2_50 res2net50_14w_8s skresnet18 cspresnet50 gernet_s dla34 hrnet_w18_small regnety_002 "
    "densenet121 inception_v3 efficientnet_b0 efficientnet_lite0 mobilenetv3_small_050 mobilenetv4_conv_small "
    "mixnet_s rexnet_100 mobileone_s0 repvgg_a0 convnext_atto convnextv2_atto fastvit_t8 "
    "vit_tiny_patch16_224 pit_ti_224 pvt_v2_b0 xcit_nano_12_p16_224 levit_128s "
    "mobilevit_xxs seresnet18 ghostnet_050 efficientformer_l1 edgenext_xx_small poolformer_s12 mixer_s32_224"
)
FAST = ("test_resnet", "lcnet_050", "test_vit")
NETWORKS = [("torchvision", name) for name in TORCHVISION.split()] + [("timm", name) for name in TIMM.split()]


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=10).double().eval()
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in SIZES else {}
    return torchvision.models.get_model(name, num_classes=10, **extra).double().eval()


def image_for(net: nn.Module, name: str) -> Tensor:
    built_for = getattr(net, "default_cfg", {}).get("input_size", (3, 224, 224))[1]
    size = SIZES.get(name, built_for if any(word in name for word in ONE_SIZE) else 64)
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def has_batch_norm(net: nn.Module) -> bool:
    return any("BatchNorm" in type(module).__name__ for module in net.modules())


class SlowRMSNorm(nn.Module):
    """`weight x / sqrt(mean(x^2) + eps)`, the mean over channels."""

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(old.weight.detach().clone()), old.eps
        self.axis = 1 if "2d" in type(old).__name__ else -1

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1 if axis == self.axis % x.dim() else 1 for axis in range(x.dim())]
        return x / (x.square().mean(self.axis, keepdim=True) + self.eps).sqrt() * self.weight.view(shape)


def group_norm(old: Any) -> nn.Module:
    new = nn.GroupNorm(gcd(4, old.num_features), old.num_features, eps=old.eps, dtype=torch.float64)
    new.load_state_dict({"weight": old.weight, "bias": old.bias})
    return nn.Sequential(new, old.drop, old.act) if hasattr(old, "act") else new


def by_hand(net: nn.Module, kind: str, convert: Callable[[Any], nn.Module]) -> nn.Module:
    """A network with other norms: the loop that everybody writes, layer by layer."""
    converted: dict[nn.Module, nn.Module] = {}
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if kind in type(child).__name__ and not isinstance(child, nn.Sequential):
                converted.setdefault(child, convert(child))
                setattr(parent, name, converted[child])
    return net


def output_and_gradients(net: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    net.zero_grad()
    net.train()
    net.eval()  # some networks of timm keep the graph of the last forward pass until then
    output = net(image)
    output.square().sum().backward()
    return output.detach(), [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "library,name",
    [*[("timm", name) for name in FAST], *[pytest.param(*one, marks=pytest.mark.slow) for one in NETWORKS]],
)
def test_a_converted_network_computes_what_its_twin_does(library: str, name: str) -> None:
    net = build(library, name)
    image = image_for(net, name)
    state, before = copy.deepcopy(net.state_dict()), output_and_gradients(net, image)
    batch = has_batch_norm(net)
    kind, convert = ("BatchNorm", group_norm) if batch else ("LayerNorm", SlowRMSNorm)
    twin = by_hand(build(library, name), kind, convert)
    rules = {"*BatchNorm*": lambda c: GroupNorm(c, num_groups=gcd(4, c))} if batch else {"LayerNorm*": RMSNorm}
    report = replace(net, rules)  # a mapping is invariant in its keys
    assert len(report.rows) == sum(isinstance(module, GroupNorm | RMSNorm) for module in net.modules())
    kinds = {type(module).__name__ for module in net.modules()}
    assert not any(kind in one for one in kinds)
    (output, gradients), (wanted, wanted_gradients) = (output_and_gradients(each, image) for each in (net, twin))
    assert output.shape == before[0].shape
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-7)
    assert len(gradients) == len(wanted_gradients)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 * float(want.abs().max() + 1))
    net.train()(image)
    net.eval()
    undo(report)
    after = net.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    assert torch.equal(net(image), before[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nfnet_l0", "dm_nfnet_f0"])
def test_a_network_without_norms_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="matches no normalization layer of the network.*there are none"):
        replace(timm.create_model(name), {"*BatchNorm*": GroupNorm})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "mobilenet_v2"])
def test_groups_of_one_value_are_refused(name: str) -> None:
    """As many groups as channels erase what a map of one pixel holds."""
    net, data = torchvision.models.get_model(name), [torch.randn(2, 3, 32, 32)]
    rules = {nn.BatchNorm2d: lambda c: nn.GroupNorm(c, c)}
    if name == "vgg11_bn":  # its last maps are of 2 x 2
        assert len(replace(net, rules, data=data).rows) == 8
        return
    with pytest.raises(InputError, match=r"an input of shape \(2, \d+, 1, 1\)"):
        replace(net, rules, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_fitted_outputs_are_nearer_than_kept_parameters(name: str) -> None:
    net = torchvision.models.get_model(name)
    data = list(torch.randn(4, 8, 3, 64, 64))
    net.train()
    for x in data:
        net(x)
    net.eval()
    changes = []
    for match in ("nothing", "affine", "output"):
        report = replace(net, {"BatchNorm2d": GroupNorm}, match=match, data=data)
        changes.append(sum(row["output change"] for row in report.rows))
        undo(report)
    assert changes[2] < min(changes[:2])
