"""Laws of networks: whatever the norm, a network builds, trains all its parameters, and puts the norm where it says.

Every `Network` of `normzoo.models` is tested with every layer of `normzoo.norms`. What a pair cannot do follows from
the layer's facts, and where a fact forbids a pair, building it must raise: the laws are two-sided.
"""

import copy
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from broken import BranchesOnASize, FreezesTheBatch
from exported import TOLERANCE, in_onnxruntime, without_tracer_warnings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.tensorboard import SummaryWriter

from normzoo import models, norms
from normzoo.errors import InputError
from normzoo.models import (
    MLP,
    Block,
    ConvNet,
    Init,
    Kaiming,
    Network,
    Normal,
    Orthogonal,
    ResNet,
    TorchDefault,
    Xavier,
)
from normzoo.norms import BatchNorm, Facts, GroupNorm, InstanceNorm, NoNorm, Norm, WeightNorm, WeightStandardization

SHAPE, CLASSES = (3, 16, 16), 7
# Smaller than by default where that is large; a network that has no row is tested as it is.
SMALL: dict[str, dict[str, Any]] = {"ResNet": {"depth": 8}, "ConvNet": {"widths": (32, 32, 64)}}
LAYERS = norms.layers()
NETWORKS: dict[str, type[Network]] = {
    name: value
    for name, value in vars(models).items()
    if isinstance(value, type) and issubclass(value, Network) and value is not Network
}


def build(network: type[Network], **arguments: Any) -> Network:
    """A network with the same random weights at every call."""
    torch.manual_seed(0)
    return network(SHAPE, CLASSES, **{**SMALL.get(network.__name__, {}), **arguments})


def blocks(net: nn.Module) -> list[Block]:
    return [module for module in net.modules() if isinstance(module, Block)]


def seeded(net: nn.Module, x: Tensor) -> Tensor:
    """The output, whose random numbers, if a layer draws any, are the same at every call."""
    torch.manual_seed(0)
    y: Tensor = net(x)
    return y


def images(number: int = 4, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(1))


# Linear layers have no positions: networks with a linear layer before a norm take dense norms only.
IS_DENSE = {name: any(isinstance(b.layer, nn.Linear) for b in blocks(build(net))) for name, net in NETWORKS.items()}
PAIRS = [
    pytest.param(net, layer, id=f"{net_name}-{name}")
    for net_name, net in NETWORKS.items()
    for name, layer in LAYERS.items()
    if layer.facts.dense or not IS_DENSE[net_name]
]
IMPOSSIBLE = [
    pytest.param(net, layer, id=f"{net_name}-{name}")
    for net_name, net in NETWORKS.items()
    for name, layer in LAYERS.items()
    if IS_DENSE[net_name] and not layer.facts.dense
]
every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
every_pair = pytest.mark.parametrize("network,layer", PAIRS)


@every_pair
def test_every_norm_builds_and_every_parameter_learns(network: type[Network], layer: type[Norm]) -> None:
    """A parameter without a gradient would make distributed training refuse the network."""
    for position in ("before", "after"):
        net = build(network, norm=layer, norm_position=position)
        logits = net(images())
        assert logits.shape == (4, CLASSES)
        logits.square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient, norm {position} the activation"
            assert parameter.grad.isfinite().all(), name
        with torch.no_grad():
            assert net.eval()(images(1)).isfinite().all()


@pytest.mark.parametrize("network,layer", IMPOSSIBLE)
def test_a_norm_that_needs_positions_is_refused_where_there_are_none(network: type[Network], layer: type[Norm]) -> None:
    with pytest.raises(InputError, match=f"{layer.__name__} cannot follow a linear layer.*Use"):
        build(network, norm=layer)


@every_pair
def test_the_norm_is_in_every_block(network: type[Network], layer: type[Norm]) -> None:
    net = build(network, norm=layer)
    on_weights = layer.facts.acts_on == "weight"
    for block in blocks(net):
        assert parametrize.is_parametrized(block.layer, "weight") == on_weights
        found = block.layer.parametrizations.weight[0] if on_weights else block.norm  # type: ignore[index, union-attr]
        assert isinstance(found, layer)
        assert found.num_features == block.layer.weight.shape[0]
        if on_weights:
            assert isinstance(block.norm, GroupNorm if layer.facts.wants_partner else NoNorm)
    assert len([m for m in net.modules() if type(m) is layer]) == len(blocks(net))


@every_pair
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_bias_is_left_out_exactly_where_it_would_change_nothing(
    network: type[Network], layer: type[Norm], position: str
) -> None:
    """Observed, not read: the norm after the layer receives its output, with and without a constant per channel."""
    for block in blocks(build(network, norm=layer, norm_position=position)):
        channels = block.layer.weight.shape[0]
        shape = (16, channels) if isinstance(block.layer, nn.Linear) else (16, channels, 4, 4)
        y = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        shift = torch.linspace(-1, 1, channels).view(-1, *[1] * (len(shape) - 2))
        parts = [block.norm, block.activation] if block.norm_first else [block.activation, block.norm]
        behind = nn.Sequential(*copy.deepcopy(parts))
        changes_nothing = torch.allclose(seeded(behind, y), seeded(behind, y + shift), atol=1e-3)
        assert (block.layer.bias is None) == changes_nothing


@pytest.mark.parametrize("layer", [*LAYERS.values(), partial(WeightStandardization, then=BatchNorm)])
def test_the_norm_stands_where_norm_position_says(layer: Callable[[int], Norm]) -> None:
    """By hooks: the order in which the parts of each block ran."""
    brings = layer(4).facts.brings_activation
    for position in ("before", "after"):
        net = build(ResNet, norm=layer, norm_position=position, activation=nn.Tanh)
        ran: dict[Block, list[nn.Module]] = {}

        def hook(module: nn.Module, inputs: Any, output: Any, *, block: Block, ran: Any = ran) -> None:
            ran.setdefault(block, []).append(module)

        for block in blocks(net):
            for part in (block.layer, block.norm, block.activation):
                part.register_forward_hook(partial(hook, block=block))
        net(images())
        before_a_sum = [b for name, b in net.named_modules() if name.endswith(("second", "shortcut"))]
        for block in blocks(net):
            swaps = position == "after" and not brings and block not in before_a_sum
            order = [block.activation, block.norm] if swaps else [block.norm, block.activation]
            assert ran[block] == [block.layer, *order]
            assert isinstance(block.activation, nn.Identity if brings or block in before_a_sum else nn.Tanh)


def test_a_norm_with_an_activation_keeps_it_but_before_a_sum() -> None:
    for layer in (layer for layer in LAYERS.values() if layer.facts.brings_activation):
        net = build(ResNet, norm=layer, activation=nn.PReLU)
        for name, block in net.named_modules():
            if isinstance(block, Block):
                norm, dropped = copy.deepcopy(block.norm), copy.deepcopy(block.norm)
                dropped.drop_activation()
                x = images(4, (norm.num_features, 5, 5))
                has_none = torch.equal(norm(x), dropped(x))
                assert has_none == name.endswith(("second", "shortcut")), name
        in_blocks = [m for block in blocks(net) for m in block.modules() if isinstance(m, nn.PReLU)]
        assert not in_blocks, "the network's activation is replaced, not doubled"


def test_the_partner_of_a_norm_of_weights_is_a_norm_like_any_other() -> None:
    """The norm after the layer decides on the bias, on positions and on the activation."""
    net = build(MLP, norm=partial(WeightStandardization, then=BatchNorm))
    assert all(type(b.norm) is BatchNorm and b.layer.bias is None for b in blocks(net))
    net = build(MLP, norm=partial(WeightStandardization, then=BatchNorm), norm_position="after")
    assert all(b.layer.bias is not None for b in blocks(net))
    with pytest.raises(InputError, match="InstanceNorm cannot follow a linear layer"):
        build(MLP, norm=partial(WeightStandardization, then=InstanceNorm))
    with pytest.raises(InputError, match="then=.*WeightNorm.*weights.*GroupNorm"):
        build(MLP, norm=partial(WeightStandardization, then=WeightNorm))
    net = build(ResNet, norm=partial(WeightStandardization, then=norms.FilterResponseNorm))
    assert not any(isinstance(b.activation, nn.ReLU) for b in blocks(net))
    for name, block in net.named_modules():
        if isinstance(block, Block):
            assert (block.norm.tau is None) == name.endswith(("second", "shortcut"))


READERS = [layer for layer in LAYERS.values() if layer.facts.reads_input]
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": (2, 1)},
    "dilated": {"dilation": 2, "padding": 2, "kernel_size": (3, 2)},
    "grouped": {"groups": 2, "padding": 1},
    "reflecting": {"padding": 1, "padding_mode": "reflect"},
}


def patches_of(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """What every dot product of the layer takes, (N, C, fan_in, L), slowly."""
    if isinstance(layer, nn.Linear):
        return x[:, None, :, None].expand(-1, layer.out_features, -1, -1)
    (top, left), mode = layer.padding, layer.padding_mode.replace("zeros", "constant")
    padded = F.pad(x, (left, left, top, top), mode=mode)  # type: ignore[arg-type]
    size, step, far = layer.kernel_size, layer.stride, layer.dilation
    parts = [F.unfold(part, size, dilation=far, stride=step) for part in padded.chunk(layer.groups, 1)]  # type: ignore[arg-type]
    return torch.stack(parts, 1).repeat_interleave(layer.out_channels // layer.groups, dim=1)


@pytest.mark.parametrize("norm", READERS)
@pytest.mark.parametrize("convolution", [None, *CONVOLUTIONS.values()], ids=["Linear", *CONVOLUTIONS])
def test_a_norm_that_reads_the_input_normalizes_both_factors(
    norm: type[Norm], convolution: dict[str, Any] | None
) -> None:
    """Every output is `w.x / (|w| |x|) + b`, x what the one dot product takes; where x is zero, it is b."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 8) if convolution is None else nn.Conv2d(4, 8, **{"kernel_size": 3, **convolution})
    block = Block(layer, norm, None, init=TorchDefault()).double()
    x = torch.randn((3, 6) if convolution is None else (3, 4, 9, 7), dtype=torch.float64)
    x[1] = 0
    x.requires_grad_()
    w = layer.parametrizations.weight.original.flatten(1)  # type: ignore[union-attr]
    assert isinstance(layer.bias, Tensor)
    bias = layer.bias.view(-1, 1)
    patches = patches_of(layer, x)
    lengths = (patches.square().sum(2) + 1e-5).sqrt() * w.norm(dim=1, keepdim=True)
    observed = block(x)
    expected = (torch.einsum("ncil,ci->ncl", patches, w) / lengths + bias).view(observed.shape)
    torch.testing.assert_close(observed, expected)
    assert (observed[1].view(8, -1) == bias).all()
    wanted = [x, *block.parameters()]
    dy = torch.randn_like(observed)
    gradients = torch.autograd.grad(observed, wanted, dy, retain_graph=True)
    for a, b in zip(gradients, torch.autograd.grad(expected, wanted, dy), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block.float()(x.float()).double(), observed, rtol=0.02, atol=0.02)


@every_network
def test_a_learned_activation_is_one_per_place(network: type[Network]) -> None:
    net = build(network, activation=nn.PReLU)
    net(images()).sum().backward()
    learned = [m for m in net.modules() if isinstance(m, nn.PReLU)]
    assert len({id(m) for m in learned}) == len(learned) >= len(blocks(net)) // 2
    assert all(m.weight.grad is not None for m in learned)


# Initial weights


def layers_of(net: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    return (m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def fans(weight: Tensor) -> tuple[int, int]:
    area = math.prod(weight.shape[2:])
    return weight.shape[1] * area, weight.shape[0] * area


STD: dict[str, tuple[Init | None, Callable[[int, int], float]]] = {
    "Normal": (Normal(), lambda fan_in, fan_out: 0.1),
    "Normal-std": (Normal(std=0.3), lambda fan_in, fan_out: 0.3),
    "Normal-zero": (Normal(std=0), lambda fan_in, fan_out: 0),
    "Kaiming": (Kaiming(), lambda fan_in, fan_out: (2 / fan_in) ** 0.5),
    "Kaiming-fan_out": (Kaiming(mode="fan_out"), lambda fan_in, fan_out: (2 / fan_out) ** 0.5),
    "Kaiming-gain": (Kaiming(gain=1.0), lambda fan_in, fan_out: (1 / fan_in) ** 0.5),
    "Xavier": (Xavier(), lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5),
    "Xavier-gain": (Xavier(gain=5 / 3), lambda fan_in, fan_out: 5 / 3 * (2 / (fan_in + fan_out)) ** 0.5),
    "TorchDefault": (TorchDefault(), lambda fan_in, fan_out: (1 / (3 * fan_in)) ** 0.5),  # uniform within 1 / sqrt
}


@every_network
@pytest.mark.parametrize("init,std", STD.values(), ids=STD)
def test_init_decides_on_every_weight(network: type[Network], init: Init, std: Callable[[int, int], float]) -> None:
    for layer in layers_of(build(network, norm=NoNorm, init=init)):
        w = layer.weight
        want = std(*fans(w))
        error = 5 / math.sqrt(w.numel())  # five standard errors: of the mean, and more than five of the deviation
        assert abs(w.mean().item()) <= want * error
        assert w.std(correction=0).item() == pytest.approx(want, rel=error)
        assert layer.bias.any() == isinstance(init, TorchDefault)


@every_network
def test_orthogonal_weights_keep_lengths(network: type[Network]) -> None:
    for layer in layers_of(build(network, norm=NoNorm, init=Orthogonal(gain=1.5))):
        w = layer.weight.flatten(1)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        torch.testing.assert_close(gram, 1.5**2 * torch.eye(len(gram)), atol=1e-4, rtol=0)


@every_network
def test_without_an_init_weights_are_kaimings(network: type[Network]) -> None:
    mode = "fan_out" if network is ResNet else "fan_in"
    default, explicit = build(network), build(network, init=Kaiming(mode=mode))
    for a, b in zip(default.parameters(), explicit.parameters(), strict=True):
        assert torch.equal(a, b)


@every_network
def test_weight_norm_leaves_the_initial_weights_as_they_were(network: type[Network]) -> None:
    plain, normalized = (build(network, norm=norm, init=Normal()) for norm in (NoNorm, WeightNorm))
    for a, b in zip(layers_of(plain), layers_of(normalized), strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(plain(images()), normalized(images()), rtol=1e-4, atol=1e-5)


# Architectures


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 110])
def test_a_resnet_has_as_many_layers_as_its_depth_says(depth: int) -> None:
    """The paper counts convolutions and the head, and not the projections of shortcuts."""
    with torch.device("meta"):  # nothing is computed: only the structure counts
        net = ResNet(SHAPE, CLASSES, depth=depth)
    on_path = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and "shortcut" not in n]
    assert len(on_path) == depth


@pytest.mark.parametrize("depth", [-4, 2, 7, 9, 18, 51])
def test_a_depth_that_is_not_6n_plus_2_is_refused_with_the_nearest(depth: int) -> None:
    with pytest.raises(InputError, match=f"depth={depth}.*6n") as caught:
        ResNet(SHAPE, CLASSES, depth=depth)
    nearest = int(re.findall(r"\d+", str(caught.value))[-1])
    ResNet(SHAPE, CLASSES, depth=nearest)
    assert abs(nearest - depth) <= 3 or (nearest == 8 and depth < 8)


PARAMETERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # 269,722 in the paper's network (0.27 M), and 2,560 + 192 in the two projections and their norms (option B).
    "ResNet-20": (lambda: ResNet((3, 32, 32), 10), 272_474),
    # By hand: the stem, then three stages of convolutions with norms of 2 C, the projections last, then the head.
    "ResNet-8": (
        lambda: ResNet((1, 28, 28), 10, depth=8),
        (9 * 16 + 32)
        + 2 * (9 * 16 * 16 + 32)
        + (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 3 * 64)
        + (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * 128)
        + 650,
    ),
    # The network of section 4.1 of the batch normalization paper: a scale and a shift in the place of each bias.
    "MLP": (lambda: MLP((1, 28, 28), 10), 784 * 100 + 2 * 100 * 100 + 3 * 2 * 100 + 100 * 10 + 10),
    "MLP-linear": (lambda: MLP((1, 28, 28), 10, hidden=[]), 7850),
    "ConvNet": (lambda: ConvNet((3, 8, 8), 5, widths=[4, 6], norm=NoNorm), 27 * 4 + 4 + 36 * 6 + 6 + 6 * 5 + 5),
}


@pytest.mark.parametrize("network,parameters", PARAMETERS.values(), ids=PARAMETERS)
def test_parameter_counts(network: Callable[[], nn.Module], parameters: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == parameters


@pytest.mark.parametrize("stem,sizes", [("cifar", [32, 32, 16, 8]), ("imagenet", [8, 8, 4, 2])])
def test_stems_halve_as_they_say(stem: str, sizes: list[int]) -> None:
    net = ResNet((3, 32, 32), 10, depth=8, stem=stem)  # type: ignore[arg-type]
    seen = []
    for module in [net.stem, *net.blocks]:
        module.register_forward_hook(lambda m, i, y: seen.append(y.shape[2]))
    assert net(images(2, (3, 32, 32))).shape == (2, 10)
    assert seen == sizes


def test_a_convnet_halves_where_it_widens() -> None:
    net = ConvNet((1, 16, 16), 10, widths=[4, 4, 8, 6, 12])
    seen = []
    for block in net.stack:
        block.register_forward_hook(lambda m, i, y: seen.append(tuple(y.shape[1:3])))
    net(images(2, (1, 16, 16)))
    assert seen == [(4, 16), (4, 16), (8, 8), (6, 8), (12, 4)]
    assert all(a[0] < b[0] or a[1] == b[1] for a, b in pairwise(seen))


# What a network cannot be or take. Each message holds what was given and a remedy.

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no shape": (lambda: MLP(None, 10), r"input_shape=None.*LightningDataModule"),  # type: ignore[arg-type]
    "no classes": (lambda: MLP(SHAPE, None), r"num_classes=None.*LightningDataModule"),  # type: ignore[arg-type]
    "two sizes": (lambda: MLP((28, 28), 10), r"\(28, 28\).*\(C, H, W\).*\(3, 32, 32\)"),  # type: ignore[arg-type]
    "a size of 0": (lambda: ConvNet((3, 0, 8), 10), r"\(3, 0, 8\).*at least 1"),
    "0 classes": (lambda: ResNet(SHAPE, 0), "num_classes=0.*at least 1"),
    "a width of 0": (lambda: MLP(SHAPE, 10, hidden=[8, 0]), r"hidden=\[8, 0\].*at least 1"),
    "no width": (lambda: ConvNet(SHAPE, 10, widths=[]), r"widths=\[\].*at least one"),
    "a channel of 0": (lambda: ConvNet(SHAPE, 10, widths=[4, 0]), r"widths=\[4, 0\].*at least 1"),
    "ResNet of 0": (lambda: ResNet(SHAPE, 10, width=0), "width=0.*at least 1"),
    "small for ResNet": (lambda: ResNet((3, 3, 3), 10), "2 times.*4 x 4.*3 x 3.*resize"),
    "narrow for ResNet": (lambda: ResNet((3, 32, 2), 10), "2 times.*4 x 4.*32 x 2.*resize"),
    "small for the stem": (lambda: ResNet((3, 8, 8), 10, stem="imagenet"), "4 times.*16 x 16.*8 x 8.*resize"),
    "small for ConvNet": (lambda: ConvNet((1, 2, 2), 10, widths=[2, 4, 8]), "2 times.*4 x 4.*2 x 2.*resize"),
    "unknown stem": (lambda: ResNet(SHAPE, 10, stem="mnist"), "stem='mnist'.*cifar.*imagenet"),  # type: ignore[arg-type]
    "unknown position": (
        lambda: MLP(SHAPE, 10, norm_position="behind"),  # type: ignore[arg-type]
        "norm_position='behind'.*before.*after",
    ),
    "negative std": (lambda: Normal(std=-1), "std=-1.*at least 0"),
    "unknown mode": (lambda: Kaiming(mode="fan"), "mode='fan'.*fan_in.*fan_out"),  # type: ignore[arg-type]
    "torch's norm": (lambda: ConvNet(SHAPE, 10, norm=nn.BatchNorm2d), "BatchNorm2d.*Norm.*CONTRIBUTING"),  # type: ignore[arg-type]
    "a layer, not a class": (lambda: MLP(SHAPE, 10, norm=BatchNorm(100)), r"norm=BatchNorm\(100.*class"),
    "a number": (lambda: MLP(SHAPE, 10, norm=3), "norm=3.*class"),  # type: ignore[arg-type]
    "groups": (lambda: MLP(SHAPE, 10, norm=partial(GroupNorm, num_groups=3)), "num_groups=3.*divisors"),
}


@pytest.mark.parametrize("given,message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused(given: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        given()


@every_network
@pytest.mark.parametrize("shape", [(4, 1, 16, 16), SHAPE, (4, 16, 16), (4, 16, 16, 3), (4, 3, 16)])
def test_images_of_another_shape_are_refused(network: type[Network], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=re.escape(str(shape[1:])) + ".*built for.*input_shape"):
        build(network)(torch.zeros(shape))


@every_network
def test_images_of_another_size_are_taken_where_positions_are_averaged(network: type[Network]) -> None:
    larger = images(2, (3, 20, 24))
    if any(isinstance(b.layer, nn.Linear) for b in blocks(build(network))):
        with pytest.raises(InputError, match=r"\(3, 20, 24\).*\(3, 16, 16\)"):
            build(network)(larger)
    else:
        assert build(network)(larger).shape == (2, CLASSES)


# Export, and the graph in TensorBoard. With BatchNorm always, with the other norms by --slow.


def of(pairs: Iterable[Any], bug: type[Norm]) -> pytest.MarkDecorator:
    """A test of these pairs, and of a ResNet with a bug, which must fail."""
    params = [
        p if p.values[1] is BatchNorm else pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in pairs
    ]
    must_fail = pytest.mark.xfail(strict=True, raises=Exception, reason="a bug that the law must catch")
    return pytest.mark.parametrize(
        "network,layer", [*params, pytest.param(ResNet, bug, id=f"bug-{bug.__name__}", marks=must_fail)]
    )


def evaluated(network: type[Network], layer: type[Norm]) -> Network:
    """After a batch of training, which moves running statistics and becomes the reference of a layer that needs one."""
    net = build(network, norm=layer)
    net(images(8))
    return net.eval()


def dynamic(network: type[Network]) -> dict[int, Any]:
    """The dimensions of images that may differ: N; and H and W where the network averages over positions."""
    return dict.fromkeys([0] if IS_DENSE[network.__name__] else [0, 2, 3], torch.export.Dim.AUTO)


def assert_exported(f: Callable[[Tensor], Tensor], net: Network) -> None:
    for n, more in ((2, 0), (4, 4), (9, 8)):
        height, width = (SHAPE[1], SHAPE[2]) if IS_DENSE[type(net).__name__] else (SHAPE[1] + more, SHAPE[2] + 2 * more)
        x = images(n, (SHAPE[0], height, width))
        with torch.no_grad():
            y, expected = f(x), net(x)
        assert y.shape == expected.shape
        assert (y - expected).abs().max() <= TOLERANCE * expected.abs().max()


@of(PAIRS, bug=FreezesTheBatch)
def test_every_network_exports_with_every_norm(network: type[Network], layer: type[Norm]) -> None:
    """`torch.export`, for any number of images and, where the network takes them, of any size."""
    net = evaluated(network, layer)
    program = torch.export.export(net, (images(),), dynamic_shapes=(dynamic(network),))
    assert_exported(program.module(), net)


# One network for each norm: the operators of a layer have a law of their own (`test_onnx`), and what a network adds is
# the same for all norms.
ONE_PER_NORM = [
    nets[i % len(nets)]
    for i, layer in enumerate(LAYERS.values())
    if "onnx" not in layer.facts.exceptions
    for nets in [[p for p in PAIRS if p.values[1] is layer]]
]


@pytest.mark.slow
@of(ONE_PER_NORM, bug=FreezesTheBatch)
def test_networks_export_to_onnx(network: type[Network], layer: type[Norm]) -> None:
    """onnxruntime computes what torch does, for any number of images and, where the network takes them, of any size."""
    net = evaluated(network, layer)
    assert_exported(in_onnxruntime(net, images(), dynamic(network)), net)


@of(PAIRS, bug=BranchesOnASize)
def test_tensorboard_draws_every_network_with_every_norm(
    network: type[Network], layer: type[Norm], tmp_path: Path
) -> None:
    """The graph in the event file has nodes of every norm, and torch has no warning for the user."""
    net = evaluated(network, layer)
    with without_tracer_warnings(), SummaryWriter(tmp_path) as writer:
        writer.add_graph(net, images())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = [node.name for node in events.Graph().node]
    drawn = {match[0] for name in names if (match := re.match(rf".*Block\[\w+\](?=.*/{layer.__name__}\[)", name))}
    # NoNorm does nothing, and has no node.
    assert len(drawn) == (0 if layer is NoNorm else len(blocks(net))), drawn
    assert any("[head]" in name for name in names)


# State


@every_pair
def test_state_survives_every_way_of_copying(network: type[Network], layer: type[Norm]) -> None:
    net = build(network, norm=layer)
    net(images(8))  # running statistics move
    other = build(network, norm=layer, init=Normal())  # other weights
    other.load_state_dict(net.state_dict())
    copies = [copy.deepcopy(net), other]
    if not any(parametrize.is_parametrized(m) for m in net.modules()):  # torch pickles these by state_dict alone
        copies.append(pickle.loads(pickle.dumps(net)))
    x = images()
    for training in (True, False):
        expected = seeded(net.train(training), x)
        for twin in copies:
            assert torch.equal(seeded(twin.train(training), x), expected)


class OnlyWhatMustBe(Norm):
    """The least a layer of one's own needs."""

    def normalize(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())


@every_network
def test_a_layer_of_ones_own_needs_normalize_alone(network: type[Network]) -> None:
    assert OnlyWhatMustBe.facts == Facts()
    net = build(network, norm=OnlyWhatMustBe)
    net(images()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(type(b.norm) is OnlyWhatMustBe and b.layer.bias is not None for b in blocks(net))
