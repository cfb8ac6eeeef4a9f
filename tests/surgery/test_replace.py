"""`replace`: what a network is afterwards, what its new layers keep, what is refused, and `undo`."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from timm.layers import BatchNormAct2d, EvoNorm2dS0, LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from normzoo import norms
from normzoo.errors import InputError
from normzoo.models import MLP, ResNet
from normzoo.norms import BatchNorm, ChannelLayerNorm, EvoNormS0, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from normzoo.surgery import fold, freeze, replace, undo


class Net(nn.Module):
    """Images, with a layer that is used twice and stands under two names, containers, and tokens at the end."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(norm is not BatchNormAct2d))
        self.norms = nn.ModuleDict({"a": norm(8), "b": norm(8)})
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(2)])
        self.again = self.norms["a"]
        self.tokens = nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norms["a"](self.blocks[0](x)).relu()
        x = self.norms["b"](self.again(self.blocks[1](x)))
        return self.head(self.tokens(x.flatten(2).mT).mean(1))


class Task(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def compiled() -> nn.Module:
    net = Net()
    net.stem = torch.compile(net.stem, backend="eager")
    return torch.compile(net, backend="eager")


def compiled_in_place() -> nn.Module:
    net = Net()
    net.compile(backend="eager")
    return net


def parametrized() -> nn.Module:
    net = Net()
    parametrize.register_parametrization(net.stem[1], "weight", nn.Softplus())
    parametrize.register_parametrization(net.blocks[0], "weight", norms.WeightNorm(8))
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torch": Net,
    "timm": partial(Net, BatchNormAct2d),
    "ours": partial(Net, BatchNorm),
    "frozen": partial(Net, FrozenBatchNorm2d),
    "task": Task,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "parametrized": parametrized,
    "resnet": lambda: ResNet((3, 8, 8), 5, depth=8, width=8),
}
RULES: dict[str, Callable[[int], nn.Module]] = {
    "GroupNorm": GroupNorm,
    "torch.nn.GroupNorm": partial(nn.GroupNorm, 4),
    "EvoNormS0": EvoNormS0,
    "SwitchableNorm": norms.SwitchableNorm,
    "timm.LayerNorm2d": LayerNorm2d,
}
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose norms have parameters and statistics that are not those of the start."""
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
        net.train()(IMAGES)
    return net.eval()


def state_of(net: nn.Module) -> dict[str, Any]:
    """All that an operation could change: tensors, objects, modes, what trains."""
    modules = dict(net.named_modules(remove_duplicate=False))
    return {
        "tensors": {name: value.clone() for name, value in net.state_dict().items()},
        "modules": {name: id(module) for name, module in modules.items()},
        "modes": {name: module.training for name, module in modules.items()},
        "grads": {name: (id(p), p.requires_grad) for name, p in net.named_parameters()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
    }


def assert_same(after: dict[str, Any], before: dict[str, Any]) -> None:
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, value in before["tensors"].items():
        assert torch.equal(after["tensors"][name], value), name
    for what in ("modules", "modes", "grads", "hooks"):
        assert after[what] == before[what], what


def slow_if_compiled(network: str, *others: str) -> Any:
    return pytest.param(network, *others, marks=pytest.mark.slow if "compiled" in network else ())


over_networks = pytest.mark.parametrize("network", [slow_if_compiled(network) for network in NETWORKS])


def convert(net: nn.Module, new: Callable[[int], nn.Module] | None, **options: Any) -> Any:
    """Replaces the batch norms of images."""
    kinds = {type(module).__name__ for module in net.modules()}
    wanted = [kind for kind in kinds if "BatchNorm" in kind and "1d" not in kind]
    return replace(net, dict.fromkeys(wanted, new), **options)


EVERY_NETWORK = [
    slow_if_compiled(network, "GroupNorm", match) for network in NETWORKS for match in ("affine", "output")
]
EVERY_RULE = [("timm", rule, "output") for rule in RULES if rule != "GroupNorm"]


@pytest.mark.parametrize("network,rule,match", [*EVERY_NETWORK, *EVERY_RULE, ("torch", "GroupNorm", "nothing")])
def test_undo_makes_the_network_what_it_was(network: str, rule: str, match: Any) -> None:
    net = trained(NETWORKS[network])
    before, output = state_of(net), net(IMAGES)
    report = convert(net, RULES[rule], match=match, data=[IMAGES] if match == "output" else None)
    assert not torch.equal(net(IMAGES), output)
    net(IMAGES).square().sum().backward()
    torch.optim.SGD(net.parameters(), lr=0).step()
    undo(report)
    undo(report)
    assert_same(state_of(net), before)
    assert torch.equal(net(IMAGES), output)


@over_networks
def test_a_new_layer_is_where_the_old_one_was(network: str) -> None:
    net = trained(NETWORKS[network])
    names = [name for name, module in net.named_modules(remove_duplicate=False) if type(module) is not nn.Identity]
    rows = convert(net, GroupNorm).rows
    after = [name for name, _ in net.named_modules(remove_duplicate=False)]
    assert [name for name in names if name not in after and "parametrizations" not in name] == []
    assert sum(isinstance(module, GroupNorm) for module in net.modules()) == len(rows)
    assert not any("BatchNorm" in type(m).__name__ and "1d" not in type(m).__name__ for m in net.modules())
    net.train()(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_shared_layer_is_replaced_once() -> None:
    net = trained(Net)
    report = convert(net, GroupNorm)
    assert net.again is net.norms["a"]
    assert [row["layer"] for row in report.rows] == ["stem.1", "norms.a, again", "norms.b"]
    assert isinstance(net.get_submodule("head.1"), nn.BatchNorm1d)


PAIRS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "BatchNorm": (nn.BatchNorm2d, BatchNorm, lambda c: nn.BatchNorm2d(c)),
    "TorchBatchNorm": (BatchNorm, norms.TorchBatchNorm, lambda c: nn.BatchNorm2d(c)),
    "torch's": (BatchNorm, nn.BatchNorm2d, lambda c: nn.BatchNorm2d(c)),
    "other eps": (partial(nn.BatchNorm2d, eps=0.3, momentum=0.02), BatchNorm, partial(nn.BatchNorm2d, eps=0.3)),
    "FrozenBatchNorm": (nn.BatchNorm2d, norms.FrozenBatchNorm, lambda c: nn.BatchNorm2d(c)),
    "from a frozen one": (FrozenBatchNorm2d, BatchNorm, lambda c: nn.BatchNorm2d(c)),
    "no parameters": (partial(nn.BatchNorm2d, affine=False), BatchNorm, lambda c: nn.BatchNorm2d(c)),
    "LayerNorm2d": (LayerNorm2d, ChannelLayerNorm, LayerNorm2d),
    "GroupNorm": (partial(nn.GroupNorm, 1), LayerNorm, partial(nn.GroupNorm, 1)),
}


@pytest.mark.parametrize("old,new,same", PAIRS.values(), ids=PAIRS)
def test_a_layer_of_the_same_kind_computes_the_same(old: Any, new: Any, same: Any) -> None:
    net = trained(partial(Net, old))
    output = net(IMAGES)
    report = replace(net, {type(old(8)): new}, where=["stem", "norms"])
    torch.testing.assert_close(net(IMAGES), output, rtol=1e-4, atol=1e-5)
    assert len(report.rows) == 3
    undo(report)
    assert torch.equal(net(IMAGES), output)


def test_tokens_stay_channels_last() -> None:
    net = trained(Net)
    output = net(IMAGES)
    replace(net, {nn.LayerNorm: ChannelLayerNorm})
    torch.testing.assert_close(net(IMAGES), output, rtol=1e-4, atol=1e-5)
    report = replace(net, {"ChannelLayerNorm": RMSNorm})
    assert net.tokens.channel_dim == -1
    assert report.notes == ["the new layers have no bias"]
    twin = trained(Net)
    twin.tokens, weight = nn.RMSNorm(8, eps=1e-5), twin.tokens.weight
    twin.tokens.weight = weight
    torch.testing.assert_close(net(IMAGES), twin(IMAGES), rtol=1e-4, atol=1e-5)


def test_data_tells_the_layout_where_the_class_does_not() -> None:
    class LayerNormOfImages(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    net = nn.Sequential(nn.Conv2d(3, 8, 3), LayerNormOfImages(8))
    output = net(IMAGES)
    replace(net, {nn.LayerNorm: ChannelLayerNorm}, data=[IMAGES])
    torch.testing.assert_close(net(IMAGES), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("match", ["nothing", "affine", "output"])
def test_dtype_mode_and_what_trains_are_kept(match: Any) -> None:
    net = trained(Net).to(torch.bfloat16)
    net.stem[1].train()
    net.norms["b"].requires_grad_(False)
    net.norms["a"].bias.requires_grad_(False)
    data = [IMAGES.to(torch.bfloat16)] if match == "output" else None
    convert(net, norms.SwitchableNorm, match=match, data=data)
    assert [net.stem[1].training, net.norms["a"].training] == [True, False]
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in net.norms["b"].parameters())
    assert (net.again.weight.requires_grad, net.again.bias.requires_grad) == (True, False)
    assert all(p.requires_grad for p in net.stem[1].parameters())


def test_a_network_without_memory_is_converted_there() -> None:
    with torch.device("meta"):
        net = Net()
    convert(net, GroupNorm)
    assert {p.device.type for p in net.parameters()} == {"meta"}
    with pytest.raises(InputError, match="meta device"):
        replace(net, {"GroupNorm": LayerNorm}, match="output", data=[IMAGES])


def test_the_activation_inside_a_layer_stays() -> None:
    net = trained(partial(Net, BatchNormAct2d))
    twin = copy.deepcopy(net)
    convert(net, partial(nn.GroupNorm, 4))
    for name in ("stem.1", "norms.a", "norms.b"):
        old: Any = twin.get_submodule(name)
        new = nn.GroupNorm(4, 8)
        new.load_state_dict({"weight": old.weight, "bias": old.bias})
        twin.set_submodule(name, nn.Sequential(new, nn.ReLU()))
    twin.again = twin.norms["a"]
    assert torch.equal(net(IMAGES), twin(IMAGES))


def test_an_activation_is_neither_lost_nor_doubled() -> None:
    inside, outside = trained(partial(Net, BatchNormAct2d)), trained(Net)
    convert(inside, EvoNormS0)
    convert(outside, EvoNormS0)
    assert inside.stem[1].v is not None
    assert outside.stem[1].v is None
    replace(timm := nn.Sequential(EvoNorm2dS0(8)), {"EvoNorm2dS0": EvoNormS0})
    assert isinstance(timm[0], EvoNormS0)


def test_torch_does_not_skip_a_norm_in_evaluation() -> None:
    """Its fast path computes a LayerNorm, whatever the layer is."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        before = net(x)
        report = replace(net, {nn.LayerNorm: RMSNorm})
        fast = net(x)
    torch.testing.assert_close(fast, net(x))  # with gradients, torch takes the other path
    assert not torch.allclose(fast, before, atol=1e-3)
    undo(report)
    with torch.no_grad():
        assert torch.equal(net(x), before)


def test_a_padded_batch_runs_in_a_transformer_of_torch() -> None:
    """Which packs it in evaluation, as only torch's own LayerNorm can take it."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    report = replace(net, {nn.LayerNorm: RMSNorm})
    x, padding = torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [3]])
    with torch.no_grad():
        packed = net(x, src_key_padding_mask=padding)
    torch.testing.assert_close(packed[~padding], net(x, src_key_padding_mask=padding)[~padding])
    undo(report)
    assert net.use_nested_tensor


def test_undo_out_of_order_is_refused() -> None:
    """The last first, or a network would have layers of both; undone in order, each bit is as before."""
    net = trained(Net)
    before = state_of(net)
    first = convert(net, BatchNorm)
    second = replace(net, {BatchNorm: GroupNorm})
    third = fold(net.eval(), IMAGES)
    after = state_of(net)
    with pytest.raises(InputError, match="stem.1 is no longer the layer"):
        undo(first)
    assert_same(state_of(net), after)
    for report in (third, second, first):
        undo(report)
    assert_same(state_of(net), before)


def test_undo_keeps_the_mode() -> None:
    net = trained(Net).train()
    report = convert(net, GroupNorm)
    net.eval()
    undo(report)
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm])
def test_a_frozen_layer_stays_frozen(kind: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    freeze(net)
    assert "frozen" in replace(net, {nn.BatchNorm2d: kind}).rows[0]["kept"]
    net.train()(IMAGES)
    assert not net[1].running_mean.any()


def test_a_converted_network_can_be_copied_and_saved() -> None:
    net = trained(partial(Net, BatchNormAct2d))
    convert(net, GroupNorm, match="output", data=[IMAGES])
    torch.save(net, file := io.BytesIO())
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(other(IMAGES), net(IMAGES))


def test_a_layer_can_be_removed() -> None:
    net = trained(Net)
    report = replace(net, {nn.BatchNorm1d: None})
    assert isinstance(net.head[1], nn.Identity)
    assert report.rows[0]["to"] == "nothing"


def test_the_first_rule_counts_and_where_selects() -> None:
    net = trained(Net)
    replace(net, {net.norms["b"]: LayerNorm, nn.BatchNorm2d: GroupNorm}, where=["norms.*", "stem"])
    kinds = [type(m).__name__ for m in (net.stem[1], net.again, net.norms["b"], net.head[1])]
    assert kinds == ["GroupNorm", "GroupNorm", "LayerNorm", "BatchNorm1d"]


# Fitted outputs.


@torch.no_grad()
def outputs(net: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, y: seen.append(y.clone()))
    net(images)
    handle.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize("new", [GroupNorm, partial(nn.GroupNorm, 2), RMSNorm, norms.DynamicTanh])
def test_each_layer_is_the_least_squares_fit_to_the_old_network(new: Any) -> None:
    """The slow way: converts one layer after the other, and solves for each channel by `lstsq`."""
    net = trained(lambda: ResNet((3, 8, 8), 5, depth=8, width=8))
    slow, old = copy.deepcopy(net), copy.deepcopy(net)
    report = replace(net, {BatchNorm: new}, match="output", data=[IMAGES])
    for row in report.rows:
        layer = new(slow.get_submodule(row["layer"]).num_features)
        if "eps" in row["kept"]:
            layer.eps = 1e-5
        slow.set_submodule(row["layer"], layer)
        z = outputs(slow, layer, IMAGES).movedim(1, 0).flatten(1)
        y = outputs(old, old.get_submodule(row["layer"]), IMAGES).movedim(1, 0).flatten(1)
        with torch.no_grad():
            for c in range(len(z)):
                columns = torch.stack([z[c], torch.ones_like(z[c])] if layer.bias is not None else [z[c]], 1)
                solved = torch.linalg.lstsq(columns, y[c][:, None], driver="gelsd").solution
                layer.weight[c] = solved[0]
                if layer.bias is not None:
                    layer.bias[c] = solved[1]
        fitted: Any = net.get_submodule(row["layer"])
        torch.testing.assert_close(fitted.weight, layer.weight, rtol=1e-3, atol=1e-3)
        error = outputs(slow, layer, IMAGES).movedim(1, 0).flatten(1) - y
        assert row["output change"] == pytest.approx(float(error.norm() / y.norm()), rel=1e-2, abs=1e-4)


def test_several_batches_are_fitted_as_one() -> None:
    """In a network whose activation overwrites the output of the layer."""
    net = trained(Net)
    old = outputs(net, net.stem[1], IMAGES)
    report = replace(net, {nn.BatchNorm2d: norms.DynamicTanh}, where="stem", match="output", data=IMAGES.split(2))
    layer: Any = net.stem[1]
    weight, bias = (p.detach().view(-1, 1, 1) for p in (layer.weight, layer.bias))
    z = ((outputs(net, layer, IMAGES) - bias) / weight).movedim(1, 0).flatten(1)
    y = old.movedim(1, 0).flatten(1)
    for c in range(8):
        solved = torch.linalg.lstsq(torch.stack([z[c], torch.ones_like(z[c])], 1), y[c][:, None]).solution
        fitted = torch.stack([layer.weight[c], layer.bias[c]])[:, None].double()
        torch.testing.assert_close(fitted, solved, rtol=1e-3, atol=1e-4)
    change = (outputs(net, layer, IMAGES) - old).norm() / old.norm()
    assert report.rows[0]["output change"] == pytest.approx(float(change), rel=1e-4)
    assert report.notes[0].endswith(", over 3 batches")


class Loads(LightningDataModule):
    """Counts how often it is set up."""

    setups = 0

    def setup(self, stage: str) -> None:
        self.setups += 1

    def train_dataloader(self) -> Any:
        return IMAGES.split(2)


def test_a_data_module_is_set_up_once() -> None:
    data = Loads()
    report = replace(trained(Net), {nn.BatchNorm2d: norms.GroupNorm}, match="output", data=data)
    assert data.setups == 1
    assert report.notes[0].endswith(", over 3 batches")


def test_tokens_are_fitted_along_their_channels() -> None:
    net = trained(Net)
    output = net(IMAGES)
    report = replace(net, {nn.LayerNorm: ChannelLayerNorm}, match="output", data=[IMAGES])
    torch.testing.assert_close(net(IMAGES), output, rtol=1e-3, atol=1e-3)
    assert report.rows[0]["output change"] < 1e-3


def test_new_running_statistics_are_learned() -> None:
    net = trained(Net)
    batches = list(torch.randn(8, 4, 3, 8, 8))
    report = replace(net, {nn.LayerNorm: BatchNorm}, match="output", data=iter(batches))
    assert int(net.tokens.num_batches_tracked) == 8
    assert net.tokens.momentum == 0.1
    assert report.rows[0]["output change"] < 0.7
    assert "running statistics" in replace(net, {nn.BatchNorm2d: norms.RangeBatchNorm}).notes[0]


@pytest.mark.slow
def test_a_trained_network_still_predicts() -> None:
    """Digits in three epochs of a ResNet-8, then GroupNorm without training."""
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(data))
    images, labels = torch.tensor(data[order], dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(target[order])
    net = ResNet((1, 8, 8), 10, depth=8, width=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for x, y in zip(images[:1280].split(64), labels[:1280].split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    net.eval()

    def accuracy(match: Any = None) -> float:
        other = copy.deepcopy(net)
        if match:
            replace(other, {"BatchNorm": GroupNorm}, match=match, data=images[:1280].split(64))
        with torch.no_grad():
            return 100 * float((other(images[1280:]).argmax(1) == labels[1280:]).float().mean())

    assert accuracy() > 90
    assert accuracy("output") > accuracy("nothing") + 20
    assert accuracy("output") > 80


def test_changes_in_half_precision_are_measured() -> None:
    """Where squares of the values are larger than its largest number."""
    norm = nn.BatchNorm1d(4).eval()
    report = replace(nn.Sequential(norm).half(), {nn.BatchNorm1d: None}, data=[torch.full((2, 4), 1000.0).half()])
    assert report.rows[0]["output change"] == pytest.approx(0, abs=1e-4)


def test_layers_that_the_data_does_not_reach_are_named() -> None:
    net = trained(Net)
    net.spare = nn.BatchNorm2d(8)
    report = convert(net, GroupNorm, match="output", data=[(IMAGES, torch.zeros(6))])
    assert report.rows[-1]["output change"] is None
    report = replace(net, {GroupNorm: LayerNorm}, data=[{"x": IMAGES, "label": torch.zeros(6)}])
    assert report.notes[-1] == "the data does not reach spare"
    assert report.notes[-1] == "the data does not reach spare"


def test_the_report_says_what_happened() -> None:
    net = trained(Net)
    report = replace(net, {"BatchNorm2d": GroupNorm}, where="norms.b", match="output", data=[IMAGES])
    lines = str(report).splitlines()
    assert lines[0] == "replaced 1 layer"
    assert lines[1].split() == ["layer", "from", "to", "kept", "output", "change"]
    assert lines[2].split()[:7] == ["norms.b", "BatchNorm2d(8)", "GroupNorm(8)", "weight", "and", "bias", "fitted,"]
    assert lines[3].startswith("relative change of the network's output: ")
    assert "output change" not in replace(trained(Net), {"BatchNorm2d": GroupNorm}).rows[0]


# What is refused.


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("Broken does not take an input .*something inside")


def qat() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).train()
    config = torch.ao.quantization.get_default_qat_qconfig_mapping("fbgemm").global_qconfig
    net = torch.ao.quantization.fuse_modules_qat(net, [["0", "1"]])
    net.qconfig = config
    return torch.ao.quantization.prepare_qat(net)


def deep() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = {
    "no rules": (Net, {}, {}, "matches no normalization layer"),
    "misspelt": (Net, {"BatchNrom2d": GroupNorm}, {}, "'BatchNrom2d' matches no .* there are BatchNorm2d, BatchNorm1d"),
    "one of two": (Net, {"BatchNorm2d": GroupNorm, "GroupNorm": LayerNorm}, {}, "'GroupNorm' matches no"),
    "not there": (Net, {"BatchNorm1d": LayerNorm}, {"where": "stem"}, "where='stem'; it matches head.1"),
    "unknown where": (Net, {"BatchNorm2d": GroupNorm}, {"where": "stm"}, "where='stm' matches none .* stem"),
    "no norm": (Net, {nn.Conv2d: GroupNorm}, {}, "no number of channels"),
    "instance": (Net, {"BatchNorm2d": GroupNorm(8)}, {}, "give what builds a layer"),
    "builds no module": (Net, {"BatchNorm2d": lambda c: c}, {}, "built a int"),
    "takes other arguments": (Net, {"BatchNorm2d": nn.GroupNorm}, {}, "missing 1 required positional argument"),
    "does not divide": (Net, {"BatchNorm2d": partial(GroupNorm, num_groups=3)}, {}, "must divide the number"),
    "torch's does not divide": (Net, {"BatchNorm2d": partial(nn.GroupNorm, 3)}, {}, "divisible by num_groups"),
    "behind a linear layer": (Net, {nn.BatchNorm1d: InstanceNorm}, {}, "head.1: InstanceNorm .* has none"),
    "one value": (Net, {nn.BatchNorm1d: partial(GroupNorm, num_groups=8)}, {}, "one value per group"),
    "torch's one value": (Net, {nn.BatchNorm1d: partial(nn.GroupNorm, 8)}, {}, "returns a constant"),
    "one position": (
        deep,
        {nn.BatchNorm2d: partial(nn.GroupNorm, 8)},
        {"data": [IMAGES]},
        "1: GroupNorm returns a constant for an input of shape \\(6, 8, 1, 1\\)",
    ),
    "on a weight": (Net, {"BatchNorm2d": norms.WeightNorm}, {}, "acts on the weight .*register_parametrization"),
    "layout": (
        Net,
        {"BatchNorm2d": nn.LayerNorm},
        {},
        "norms.b: LayerNorm does not take an input of shape .*Given normalized_shape",
    ),
    "layout of tokens": (
        Net,
        {nn.LayerNorm: partial(nn.GroupNorm, 4)},
        {},
        "tokens: GroupNorm does not take .* Expected weight to be a vector of size",
    ),
    "fails": (Net, {"BatchNorm2d": lambda c: Broken()}, {}, "Broken does not take an input .*something inside"),
    "other shape": (Net, {"BatchNorm2d": lambda c: nn.Flatten()}, {}, "does not return"),
    "quantization": (qat, {"BatchNorm2d": GroupNorm}, {}, "part of a ConvBn2d"),
    "no data": (Net, {"BatchNorm2d": GroupNorm}, {"match": "output"}, "needs data"),
    "empty data": (Net, {"BatchNorm2d": GroupNorm}, {"match": "output", "data": []}, "yields no batch"),
    "match": (Net, {"BatchNorm2d": GroupNorm}, {"match": "ouptut"}, "match='ouptut'"),
    "no parameters": (
        Net,
        {"BatchNorm2d": norms.PositionalNorm},
        {"match": "output", "data": [IMAGES]},
        "no weight or bias",
    ),
    "not linear": (
        Net,
        {"BatchNorm2d": norms.GlobalResponseNorm},
        {"match": "output", "data": [IMAGES]},
        "no weight or bias that scale",
    ),
    "wrong data": (Net, {"BatchNorm2d": GroupNorm}, {"match": "output", "data": [IMAGES[:, :2]]}, "channels"),
    "dictionaries": (
        Net,
        {"BatchNorm2d": GroupNorm},
        {"data": [{"image": IMAGES, "label": 0}]},
        r"dictionaries of 'image', 'label', which Net.forward\(x\) does not take .* give its inputs",
    ),
    "not finite": (
        Net,
        {"BatchNorm2d": GroupNorm},
        {"match": "output", "data": [IMAGES, IMAGES * torch.nan]},
        "the outputs of stem.1, .* have NaN or infinite values",
    ),
    "wrong second batch": (
        Net,
        {"BatchNorm2d": GroupNorm},
        {"match": "output", "data": [IMAGES, IMAGES[:, :2]]},
        "channels",
    ),
}


@pytest.mark.parametrize("build,rules,options,message", REFUSED.values(), ids=REFUSED)
def test_wrong_input_is_refused_and_changes_nothing(build: Any, rules: Any, options: Any, message: str) -> None:
    net = build()
    before = state_of(net)
    with pytest.raises((InputError, RuntimeError), match=f"(?s){message}") as raised:
        replace(net, rules, **options)
    assert isinstance(raised.value, InputError) or "data" in options
    assert_same(state_of(net), before)


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(InputError, match="needs a first batch"):
        replace(nn.Sequential(nn.LazyBatchNorm2d()), {"*BatchNorm2d": GroupNorm})


def test_all_refusals_come_in_one_message() -> None:
    with pytest.raises(InputError) as raised:
        replace(MLP((1, 4, 4), 3, hidden=[8] * 4 + [9, 10, 11, 12, 13]), {"BatchNorm": InstanceNorm})
    first, second, *_, last = str(raised.value).split("\n  ")
    assert first.startswith("9 of 9 layers cannot be replaced, and the network is unchanged")
    assert second.startswith("hidden.0.norm, hidden.1.norm, hidden.2.norm and 1 more: InstanceNorm got an input of")
    assert last == "and 1 more reasons."


def test_a_distributed_network_is_refused() -> None:
    net = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(net)
    net.module = Net()
    with pytest.raises(InputError, match="call replace on its .module"):
        replace(net, {"BatchNorm2d": GroupNorm})
