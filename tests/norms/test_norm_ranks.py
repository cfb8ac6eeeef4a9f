"""Several ranks equal one rank that has all samples."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from laws import LARGE, assert_close, buffers_of, law, on_images, same_tensors
from ranks import TwoRanks
from references import State
from subjects import C, Subject
from torch import Tensor

from normzoo.errors import InputError
from normzoo.norms import Norm
from normzoo.norms._arguments import keyword_defaults
from normzoo.norms._ops import cpu as kernels


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    pool = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


def of_rank(layer: Norm, x: Tensor, dy: Tensor, v: Tensor, ranks: int = 1) -> dict[str, Tensor]:
    """What one rank sees: outputs, buffers, first and second derivatives for its part of the loss.

    Distributed training takes the mean of the ranks' losses; so each is as many times its part as there are ranks, and
    what comes back is divided.
    """
    x = x.requires_grad_()
    y = layer(x)
    dy = ranks * dy
    parameters = dict(layer.named_parameters())
    wanted = [x, *parameters.values()]
    first = torch.autograd.grad((y * dy).sum(), wanted, retain_graph=True)
    (slope,) = torch.autograd.grad((y * dy).sum(), x, create_graph=True)
    slope = slope / ranks
    bend = (slope * v).sum() + slope.pow(2).sum()
    bend = bend + 0 * sum(t.sum() for t in wanted)  # a layer that is linear in all of them has no second derivative
    second = torch.autograd.grad(bend, wanted, allow_unused=True, materialize_grads=True)
    names = ["x", *parameters]
    return {
        "y": y.detach(),
        **{f"buffer {n}": b for n, b in layer.named_buffers()},
        **{f"first {n}": d / ranks for n, d in zip(names, first, strict=True)},
        **{f"second {n}": d for n, d in zip(names, second, strict=True)},
    }


def assert_ranks_equal_one(pool: TwoRanks, layer: Norm, x: Tensor, cut: int, tolerance: float = 1e-8) -> None:
    """Two ranks, of which the first has `cut` samples, see what one would with all."""
    dy, v = (torch.randn(x.shape, generator=torch.Generator().manual_seed(s), dtype=x.dtype) for s in (6, 7))
    expected = of_rank(copy.deepcopy(layer), x.clone(), dy, v)
    halves = [(t[:cut].clone(), t[cut:].clone()) for t in (x, dy, v)]
    a, b = pool.run(of_rank, (layer, layer), *halves, (2, 2))
    for name, value in expected.items():
        kind, _, what = name.partition(" ")
        if kind == "buffer":
            assert_close(a[name], value, f"{name} of rank 0", tolerance)
            assert_close(b[name], value, f"{name} of rank 1", tolerance)
        elif kind == "y" or what == "x":
            assert_close(torch.cat([a[name], b[name]]), value, name, tolerance)
        else:
            assert_close(a[name] + b[name], value, name, tolerance)


@law(when=lambda subject: "N" in subject.layer.facts.axes and not subject.on_weights)
def test_ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    """Two ranks equal one rank that has all samples exactly with `sync`, wherever the batch is cut."""
    facts = subject.layer.facts
    x = subject.input()
    alone = subject.experienced()
    with pytest.raises(AssertionError):
        assert_ranks_equal_one(two_ranks, alone, x, cut=2)
    if facts.syncs:
        for settings in subject.settings:
            layer = subject.experienced({"sync": True, **settings})
            for cut in (1,) if settings else (1, 3, 0, len(x)):
                assert_ranks_equal_one(two_ranks, layer, x, cut)


@law(when=lambda subject: subject.layer.facts.syncs and subject.layer.facts.takes_reference)
def test_reference_over_ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    """Two ranks take the reference that one would with all samples: outputs, derivatives, constants."""
    layer, x = subject.layer(C, sync=True).double(), subject.input()
    for cut in (1, 3, 0, len(x)):
        assert_ranks_equal_one(two_ranks, layer, x, cut)


@contextmanager
def in_step() -> Iterator[None]:
    """Ranks agree on every collective before it runs: where they part they fail, and neither wait nor crash."""
    honest = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}

    def agreed(name: str) -> Callable[..., Any]:
        def run(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
            operation = arguments[:1] if name == "all_reduce" else ()
            agree(f"{name} {tuple(tensor.shape)} {tensor.dtype} {operation}")
            return honest[name](tensor, *arguments, **named)

        return run

    try:
        for name in honest:
            setattr(dist, name, agreed(name))
        yield
        agree("nothing more")
    finally:
        for name, function in honest.items():
            setattr(dist, name, function)


def agree(call: str) -> None:
    calls = [""] * dist.get_world_size()
    dist.all_gather_object(calls, call)
    assert len(set(calls)) == 1, f"the ranks run {calls}"


def of_step(layer: Norm, x: Tensor) -> tuple[State, str]:
    """The buffers after a step of training on one of two ranks; or what the layer has against x."""
    with in_step():
        try:
            return of_lone_step(layer, x), ""
        except InputError as error:
            return {}, str(error)


def of_lone_step(layer: Norm, x: Tensor) -> State:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    (ranks * layer(x.requires_grad_()).sum()).backward()  # of what distributed training takes the mean
    return buffers_of(layer)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs)
def test_ranks_of_other_sizes(subject: Subject, two_ranks: TwoRanks) -> None:
    """Ranks whose images differ in size: every value counts as much as any other, and all ranks know the same."""
    layer = subject.layer(C, sync=True).double()
    images = subject.input(0, sizes=(1, C, 2, 2)) + 3, subject.input(1, sizes=(3, C, 9, 7))
    (a, _), (b, _) = two_ranks.run(of_step, (layer, layer), images)
    assert a
    for name, buffer in a.items():
        assert_close(b[name], buffer, f"{name} of rank 1")
    if "momentum" in keyword_defaults(subject.layer) and subject.layer.facts.batch_multiple == 1:
        # To statistics over the batch it is all the same which values stand in one image.
        values = torch.cat([x.movedim(1, 0).flatten(1) for x in images], 1)
        expected = of_lone_step(copy.deepcopy(layer), values[None, :, None])
        for name, buffer in a.items():
            assert_close(buffer, expected[name], name)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs)
def test_ranks_of_one_position(subject: Subject, two_ranks: TwoRanks) -> None:
    """What one rank refuses, all refuse: none is left to wait."""
    layer = subject.layer(C, sync=True).double()
    x = subject.input(sizes=(2, C, 3, 3))
    (_, of_point), (_, of_image) = two_ranks.run(of_step, (layer, layer), (x[:, :, :1, :1].clone(), x))
    assert bool(of_point) == bool(of_image)


@law(when=lambda subject: on_images(subject) and subject.layer.facts.syncs)
def test_ranks_of_other_ways(subject: Subject, two_ranks: TwoRanks) -> None:
    """A large input goes another way than a small one or an empty one, and the same collectives lie on each."""
    layer = subject.build({"sync": True}, dtype=torch.float32)
    sizes = LARGE["NCHW"]
    assert math.prod(sizes) > kernels.SMALL
    for offset, samples in ((0.5, 2), (0.5, 0), (1e3, 2)):
        x = (subject.input(sizes=sizes) + offset).float()
        two_ranks.run(of_step, (layer, layer), (x, subject.input(samples=samples).float()))


def of_nothing(layer: Norm, x: Tensor) -> tuple[Tensor, State]:
    y = layer(x.requires_grad_())
    y.sum().backward()
    return y.detach(), buffers_of(layer)


@law(when=lambda subject: subject.layer.facts.syncs)
def test_empty_ranks(subject: Subject, two_ranks: TwoRanks) -> None:
    """A batch that is empty on all ranks leaves the running statistics alone, as one empty batch does."""
    layer, x = subject.experienced({"sync": True}), subject.input(samples=0)
    for y, buffers in two_ranks.run(of_nothing, (layer, layer), (x, x)):
        assert y.shape == x.shape
        assert same_tensors(buffers, buffers_of(layer))


def in_groups(layer: Norm, x: Tensor, alone: bool) -> Tensor:
    """The output on this rank, with statistics over a group of its own or over both ranks."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]  # on all ranks, in the same order
    layer.process_group = groups[dist.get_rank()] if alone else dist.new_group()
    return layer(x).detach()


@law(when=lambda subject: "process_group" in keyword_defaults(subject.layer) and on_images(subject))
def test_process_group(subject: Subject, two_ranks: TwoRanks) -> None:
    """With `sync`, the statistics are those of the ranks of `process_group`."""
    xs = subject.input(seed=1), subject.input(seed=2)
    layer = subject.build({"sync": True})
    expected = [copy.deepcopy(layer)(x) for x in xs]
    for observed, y in zip(two_ranks.run(in_groups, (layer, layer), xs, (True, True)), expected, strict=True):
        assert_close(observed, y)
    together = copy.deepcopy(layer)(torch.cat(xs))
    assert_close(torch.cat(two_ranks.run(in_groups, (layer, layer), xs, (False, False))), together)


def sharded_from_meta(build: Callable[..., Norm]) -> dict[str, Tensor]:
    """The start of a layer that is built without memory, sharded, moved and reset, as FSDP2 initializes networks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layer = fully_shard(build(C, device="meta"), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    return {name: getattr(t, "full_tensor", t.clone)() for name, t in layer.state_dict().items()}


@law(when=lambda subject: any(p.dim() for p in subject.layer(C).parameters()), per_class=True)
def test_sharded_from_meta(subject: Subject, two_ranks: TwoRanks) -> None:
    """Sharded before it has memory, a layer starts as one that is built at once."""
    start = subject.layer(C).state_dict()
    for found in two_ranks.run(sharded_from_meta, (subject.layer, subject.layer)):
        assert same_tensors(found, dict(start))
