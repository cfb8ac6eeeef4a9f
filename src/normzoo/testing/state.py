"""Running statistics and state dicts: what changes when, and what is saved."""

import copy
import math
import pickle
from itertools import product

import torch

from normzoo.errors import InputError
from normzoo.testing._compare import buffers_of, of_layer, refusal, same_tensors
from normzoo.testing._law import expect, law
from normzoo.testing._subject import Subject, is_stateful

NAMES = {math.nan: "NaN", math.inf: "inf"}
NEVER_IN_EVALUATION = "Update running statistics only in training: if self.training: ..."


@law(
    observed="what the layer keeps changes when it must not",
    tried="layer.eval()(x)",
    means="Validation changes the model, and what it predicts depends on the batches before.",
    remedy=NEVER_IN_EVALUATION,
)
def buffers_move_in_training_only(subject: Subject) -> None:
    """Running statistics change in training, constants and parameters never, and nothing changes in evaluation."""
    layer, facts = subject.build(), subject.facts
    at_start = {**buffers_of(layer), **{n: p.clone() for n, p in layer.named_parameters()}}
    moving = buffers_of(layer).keys() - set(facts.constants)
    expect(
        bool(moving) == facts.stateful,
        f"facts.stateful is {facts.stateful}, and the buffers that are no constants are {sorted(moving)}",
        "[name for name, _ in layer.named_buffers()]",
        f"facts = Facts(stateful={bool(moving)}); name buffers that never change in constants=(...).",
    )
    of_layer(layer, subject.input())
    trained = buffers_of(layer)
    for name in moving:
        expect(not torch.equal(trained[name], at_start[name]), f"{name} stays as it is in training")
    for name in facts.constants:
        expect(torch.equal(trained[name], at_start[name]), f"{name}, a constant, moves in training")
    of_layer(layer.eval(), subject.input(seed=1))
    for name, now in buffers_of(layer).items():
        moved = (now.double() - trained[name].double()).abs().max().item() if now.numel() else 0
        expect(
            torch.equal(now, trained[name]),
            f"in evaluation, {name} moved by {moved:.2g}",
            f"before = layer.{name}.clone(); layer.eval()(x); layer.{name} - before",
        )
    for name, p in layer.named_parameters():
        expect(
            torch.equal(p, at_start[name]),
            f"a forward pass moves the parameter {name}",
            f"before = layer.{name}.clone(); layer(x); layer.{name} - before",
            f"Compute with a copy: self.{name}.clamp(0, 1). What no optimizer learns is a buffer: "
            f"self.register_buffer({name!r}, ...).",
        )


@law(
    when=is_stateful,
    observed="one bad batch stays in the running statistics",
    tried="bad = x.clone(); bad[0, 0] = float('nan'); layer(bad); [*layer.buffers()]",
    means="After one batch with NaN or inf every evaluation is NaN; torch's own BatchNorm has this, too.",
    remedy="Where the new statistics are not finite keep the old ones, by torch.where, which needs no value in Python.",
    binds="zoo",
)
def nan_batch(subject: Subject) -> None:
    """NaN is not hidden in the output, and does not stay: the running statistics are as finite as before."""
    for bad, sizes in product(NAMES, (subject.sizes, subject.many_samples)):
        layer = subject.experienced()
        x = subject.input(seed=4, sizes=sizes)
        x[0, 0] = bad
        expect(not of_layer(layer, x)["output"].isfinite().all(), f"the output hides {NAMES[bad]}")
        expect(all(b.isfinite().all() for b in layer.buffers()), f"{NAMES[bad]} stays in the running statistics")
        before = buffers_of(layer)
        expect(of_layer(layer, subject.input(seed=5, sizes=sizes))["output"].isfinite().all(), f"{NAMES[bad]} stays")
        for name in before.keys() - set(subject.facts.constants):
            expect(not torch.equal(before[name], layer.get_buffer(name)), f"{name} stands still after {NAMES[bad]}")


@law(
    where="once",
    observed="the layer holds a tensor that is neither a parameter nor a buffer",
    tried="vars(layer), layer.state_dict()",
    means="Optimizers, state_dict() and .to(device) pass over it.",
    remedy="What is learned is an nn.Parameter, in an nn.ParameterList if there are several; what is not is a buffer: "
    "self.register_buffer(name, ...) in __init__, with persistent=False if it can be computed again.",
)
def registered(subject: Subject) -> None:
    """The tensors of a new layer are parameters and buffers."""
    for module in subject.new().modules():
        for name, value in vars(module).items():
            held = value if isinstance(value, list | tuple) else [value]
            expect(
                not any(isinstance(v, torch.Tensor) for v in held),
                f"the attribute {name} holds a tensor that is neither a parameter nor a buffer",
            )


@law(
    observed="a layer that is saved and loaded, copied or pickled computes something else",
    tried="empty = copy.deepcopy(layer); layer(x); empty.load_state_dict(layer.state_dict()); "
    "empty.eval()(x) - layer.eval()(x)",
    means="A checkpoint, an average of weights (EMA, SWA) or a second process has another network than was trained.",
    remedy="Keep every number that the output depends on as a parameter or by self.register_buffer(name, tensor), "
    "counters too: register_buffer('steps', torch.zeros((), dtype=torch.int64)).",
    explained_by=("buffers-move-in-training-only", "evaluation-keeps-nothing", "registered"),
)
def state(subject: Subject) -> None:
    """A layer restored from its state dict, a copy or a pickle computes and trains the same, and shares no memory."""
    for settings in subject.settings:
        layer, x = subject.experienced(settings), subject.input()
        layer(subject.input(seed=2))
        trained = copy.deepcopy(layer)
        torch.manual_seed(0)
        step = trained(x)
        y = layer.eval()(x)
        empty = subject.new(**settings).eval()
        empty.load_state_dict(layer.state_dict(), strict=True)
        copies = {"load_state_dict": empty, "copy.deepcopy": copy.deepcopy(layer)}
        if subject.pickles:
            copies["pickle"] = pickle.loads(pickle.dumps(layer))
        for way, other in copies.items():
            expect(torch.equal(other.eval()(x), y), f"the layer from {way} computes something else")
            before = y.clone()
            torch.manual_seed(0)
            again = other.train()(x)  # must not reach back into the layer it came from
            expect(torch.equal(layer(x), before), f"the layer from {way} shares memory with the one it came from")
            expect(
                torch.equal(again, step) and same_tensors(buffers_of(other), buffers_of(trained)),
                f"the layer from {way} trains on as another one",
                "other = copy.deepcopy(layer); layer(x); other.load_state_dict(layer.state_dict()); "
                "layer(2 * x); other(2 * x); [(a - b).abs().max() for a, b in zip(layer.buffers(), other.buffers())]",
            )


@law(
    when=is_stateful,
    observed="a batch that the layer refuses has moved its running statistics",
    tried="layer(x[:1])",
    means="A caller that catches the error, and trains on, has other statistics.",
    remedy="Check the input before anything is updated.",
    binds="zoo",
)
def state_outlives_errors(subject: Subject) -> None:
    """A batch that the layer refuses, as a whole or in its last part, has moved no statistics."""
    by = InputError if subject.declares else Exception
    for settings in subject.settings:
        for samples in range(1, 10):
            layer = subject.experienced(settings)
            before = buffers_of(layer)
            if refusal(layer, subject.input(samples=samples), by) is not None:
                expect(same_tensors(buffers_of(layer), before), f"{samples} samples, {settings}: the statistics moved")
