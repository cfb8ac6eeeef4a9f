"""What every norm takes, and the messages with which it refuses what it cannot take."""

import copy
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normzoo.errors import InputError
from normzoo.norms._arguments import keyword_defaults
from normzoo.testing._compare import (
    assert_close,
    assert_same_buffers,
    assert_same_results,
    buffers_of,
    fresh,
    of_layer,
    outputs_and_gradients,
    refusal,
    same_tensors,
)
from normzoo.testing._law import Finding, assert_helpful, expect, fact, law
from normzoo.testing._subject import Subject


def is_norm(subject: Subject) -> bool:
    """Whether it is a class derived from `Norm`."""
    return subject.is_norm


@law(
    where="once",
    when=is_norm,
    observed="the layer does not build for every number of channels",
    tried="[type(layer)(c) for c in (1, 2, 3, 7, 12, 64, 100, 257)]",
    means="Networks build the layer with num_features alone, for widths of their own.",
    remedy="Give every other argument a default that is right for any width.",
)
def builds_for_any_width(subject: Subject) -> None:
    """The layer builds for any number of channels, and all its other arguments have defaults."""
    for features in (1, 2, 3, 7, 12, 64, 100, 257):
        layer = subject.layer(features)
        expect(layer.num_features == features, f"num_features is {layer.num_features}, not {features}")
        expect(str(features) in repr(layer), f"repr lacks the number of channels: {layer!r}")
    arguments = list(inspect.signature(subject.layer).parameters.values())
    expect(arguments[0].name == "num_features", f"the first argument is {arguments[0].name}, not num_features")
    required = [a.name for a in arguments[1:] if a.default is a.empty]
    expect(not required, f"arguments without a default: {', '.join(required)}")


@law(
    where="once",
    when=is_norm,
    observed="a whole number, 1 for 1.0, changes the layer",
    means="The command line reads --alpha=1 as an integer.",
    remedy="Make tensors of arguments by torch.full(..., float(value)).",
)
def whole_numbers(subject: Subject) -> None:
    """What takes a number takes 1 for 1.0, and 0 for 0.0 where 1 is out of range."""
    x = subject.input(dtype=torch.float32)
    for argument, default in keyword_defaults(subject.layer).items():
        if not isinstance(default, float):
            continue
        outputs = []
        for kind in (int, float):
            torch.manual_seed(0)
            try:
                layer = subject.layer(subject.features, **{argument: kind(1)})
            except InputError:
                layer = subject.layer(subject.features, **{argument: kind(0)})
            outputs.append(fresh(subject.ready(layer, torch.float32), x))
        assert_close(outputs[0], outputs[1], argument)


@law(
    when=is_norm,
    observed="an input that the layer cannot take is not refused with an InputError",
    tried="layer(x[:, 1:])",
    means="A wrong width gives an error of torch deep inside, or broadcasts into a wrong result without one.",
    remedy="Define normalize(self, x), not forward: Norm.forward checks the input first.",
)
def wrong_inputs(subject: Subject) -> None:
    """Every input that the layer cannot take raises an error that names it, and changes no running statistics."""
    x, c = subject.input(dtype=torch.float32), subject.features
    narrower = x.narrow(subject.channel_axis, 0, c - 1)
    inputs = [narrower, torch.cat([x, x], dim=subject.channel_axis), x.to(torch.int64), x > 0, torch.ones(c), x.sum()]
    inputs += [x[..., :0]] if x.dim() > 2 else []
    for training in (True, False):
        layer = subject.experienced(dtype=torch.float32).train(training)
        before = buffers_of(layer)
        for wrong in inputs:
            error = refusal(layer, wrong)
            if error is None:
                raise Finding(f"an input of shape {tuple(wrong.shape)}, {wrong.dtype}, is taken")
            assert_helpful(error, str(tuple(wrong.shape)) if wrong.is_floating_point() else str(wrong.dtype))
        expect(same_tensors(buffers_of(layer), before), "an input that is refused moved the running statistics")


@fact(
    where="once",
    when=lambda subject: subject.is_norm,
    does="takes (N, C), without positions",
    tried="layer(torch.randn(6, layer.num_features))",
    means="An MLP refuses a layer whose facts say dense=False, with a message that names others.",
)
def dense(subject: Subject) -> bool:
    """The layer takes (N, C) exactly when the facts say so."""
    c = subject.features
    error = refusal(subject.layer(c), torch.randn(c, 6) if subject.on_weights else torch.randn(6, c))
    if error is not None:
        assert_helpful(error, received=f"(6, {c})")
    return error is None


@law(
    where="once",
    when=is_norm,
    observed="device= or dtype= is not that of all parameters",
    tried="type(layer)(8, device='meta', dtype=torch.bfloat16)",
    means="Networks that are built on a GPU, or on the meta device for FSDP, fail.",
    remedy="Create parameters and buffers in __init__ by torch.ones(...), without a device or dtype of their own.",
)
def device_and_dtype(subject: Subject) -> None:
    """`device` and `dtype` are those of the parameters; running statistics are float32 at least."""
    c = subject.features
    for settings in subject.settings:
        layer = subject.layer(c, **settings, device="meta", dtype=torch.bfloat16)
        for name, p in layer.named_parameters():
            expect(p.is_meta and p.dtype == torch.bfloat16, f"{name} is on {p.device}, {p.dtype}")
        for name, b in layer.named_buffers():
            expect(b.is_meta and b.dtype in (torch.float32, torch.int64), f"{name} is on {b.device}, {b.dtype}")
        wide = subject.layer(c, **settings, dtype=torch.float64)
        narrow = [n for n, t in wide.state_dict().items() if t.is_floating_point() and t.dtype != torch.float64]
        expect(not narrow, f"not float64: {', '.join(narrow)}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = subject.layer(c)
    finally:
        torch.set_default_dtype(before)
    expect(all(p.dtype == torch.bfloat16 for p in layer.parameters()), "a parameter ignores torch's default dtype")
    expect(
        all(b.dtype in (torch.float32, torch.int64) for b in layer.buffers()),
        "with a default dtype of bfloat16 a buffer is narrower than float32",
    )


@law(
    where="once",
    when=is_norm,
    observed="built on the meta device, moved and reset, the layer has other values than one that is built at once",
    tried="type(layer)(8, device='meta').to_empty(device='cpu').reset_parameters()",
    means="FSDP and torch.nn.utils.skip_init start training from memory that nobody has written.",
    remedy="Set initial values in __init__, from which Norm.reset_parameters takes them, and do not override it.",
)
def starts_from_meta(subject: Subject) -> None:
    """Built on the meta device or by `skip_init`, moved and reset, a layer is as if built at once."""
    c = subject.features
    for settings in subject.settings:
        torch.manual_seed(0)
        expected = subject.layer(c, **settings).state_dict()
        moved = [
            subject.layer(c, **settings, device="meta").to_empty(device="cpu"),
            nn.utils.skip_init(subject.layer, c, **settings),
        ]
        for layer in moved:
            with torch.no_grad():
                for t in (*layer.parameters(), *layer.buffers()):
                    t.fill_(7)
            torch.manual_seed(0)
            layer.reset_parameters()
            expect_same_state(layer.state_dict(), expected, "after reset_parameters()")


def expect_same_state(found: dict[str, Tensor], expected: dict[str, Tensor], when: str) -> None:
    """Raises unless all tensors are equal."""
    for name, value in expected.items():
        expect(torch.equal(found[name], value), f"{when}, {name} is {found[name].flatten()[:3].tolist()}")


@law(
    when=is_norm,
    observed="reset_running_stats or reset_parameters sets other values than those of a new layer",
    tried="layer(x); layer.reset_running_stats(); layer.state_dict()",
    means="Statistics of averaged weights are computed from a wrong start.",
    remedy="Do not override them; name buffers that never change in facts.constants.",
    explained_by=("starts-from-meta",),
)
def resets(subject: Subject) -> None:
    """`reset_running_stats` resets what training moves and nothing else; `reset_parameters` resets everything."""
    for settings in subject.settings:
        torch.manual_seed(0)
        start = subject.new(**settings).state_dict()
        layer = subject.experienced(settings)
        before = {name: t.clone() for name, t in layer.state_dict().items()}
        moving = {name for name, _ in layer.named_buffers()} - set(subject.facts.constants)
        torch.manual_seed(0)
        layer.reset_running_stats()
        expected = {name: start[name] if name in moving else before[name] for name in start}
        expect_same_state(layer.state_dict(), expected, "after reset_running_stats()")
        torch.manual_seed(0)
        layer.reset_parameters()
        expect_same_state(layer.state_dict(), start, "after reset_parameters()")


@law(
    when=lambda subject: subject.is_norm and not subject.on_weights,
    observed="with channel_dim=-1 the layer computes something else on (N, *, C)",
    tried="type(layer)(8, channel_dim=-1)(torch.randn(4, 5, 8))",
    means="It cannot be used in transformers, or is silently another layer there.",
    remedy="Define normalize(self, x) for (N, C, *) and leave forward to Norm, which moves the channels.",
    redraws=True,
    explained_by=("wrong-inputs", "memory-format"),
)
def channel_dim(subject: Subject) -> None:
    """`channel_dim=-1` computes on (N, *, C), few values and many, what the layer computes on (N, C, *)."""
    expect(subject.layer(subject.features, channel_dim=-1).channel_dim == -1, "channel_dim=-1 is not kept")
    for sizes in (subject.sizes, subject.many):
        for settings in subject.settings if sizes == subject.sizes else [{}]:
            for training in (True, False):
                layer = subject.build(settings, num_features=sizes[1]).train(training)
                last = copy.deepcopy(layer)
                last.channel_dim = -1
                x = subject.input(sizes=sizes)
                expected = of_layer(layer, x)
                learned = dict(last.named_parameters())
                observed = outputs_and_gradients(partial(of_last, last), x, learned)
                assert_same_results(observed, expected)
                assert_same_buffers(last, layer)
                y = last(channels_last(x))
                expect(y.is_contiguous() or not subject.of_zoo, "the output is not contiguous")


def of_last(layer: Any, x: Tensor) -> Tensor:
    """The output of a layer for channels last, as (N, C, *)."""
    return layer(channels_last(x)).movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """(N, C, *) as (N, *, C), contiguous."""
    return x.movedim(1, -1).contiguous()
