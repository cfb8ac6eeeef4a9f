"""Running statistics and state dicts: what changes when, and what is saved."""

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from laws import (
    LARGE,
    assert_close,
    assert_helpful,
    assert_same_results,
    buffers_of,
    close,
    fresh,
    is_stateful,
    law,
    of_layer,
    refusal,
    same_tensors,
)
from subjects import LAYOUTS, C, Subject, arguments_of, state_of

from normzoo.errors import InputError


@law()
def test_buffers_move_in_training_only(subject: Subject) -> None:
    """Running statistics change in training, constants and parameters never, and nothing changes in evaluation."""
    layer, facts = subject.build(), subject.layer.facts
    at_start = {**buffers_of(layer), **{n: p.clone() for n, p in layer.named_parameters()}}
    moving = buffers_of(layer).keys() - set(facts.constants)
    assert bool(moving) == facts.stateful, "a layer has buffers that are no constants iff it has running statistics"
    of_layer(layer, subject.input())
    trained = buffers_of(layer)
    assert all(not torch.equal(trained[n], at_start[n]) for n in moving), "a buffer stood still in training"
    assert all(torch.equal(trained[n], at_start[n]) for n in facts.constants), "a constant moved"
    of_layer(layer.eval(), subject.input(seed=1))
    assert same_tensors(buffers_of(layer), trained), "a buffer moved in evaluation"
    assert all(torch.equal(p, at_start[n]) for n, p in layer.named_parameters()), "a forward pass moved a parameter"


@law(when=is_stateful)
def test_nan_batch(subject: Subject) -> None:
    """NaN is not hidden in the output, and does not stay: the running statistics are as finite as before."""
    many = {**LARGE, "NC": (3000, C)}
    for bad, sizes in product((math.nan, math.inf), (LAYOUTS[subject.layout], many[subject.layout])):
        layer = subject.experienced()
        x = subject.input(seed=4, sizes=sizes)
        x[0, 0] = bad
        assert not of_layer(layer, x)["output"].isfinite().all()
        assert all(b.isfinite().all() for b in layer.buffers()), f"{bad} stays in the running statistics"
        before = buffers_of(layer)
        assert of_layer(layer, subject.input(seed=5, sizes=sizes))["output"].isfinite().all()
        moving = before.keys() - set(subject.layer.facts.constants)
        assert all(not torch.equal(before[n], layer.get_buffer(n)) for n in moving), "the next batch moved nothing"


@law(when=lambda subject: subject.layer.facts.stateful and not subject.on_weights)
def test_freeze(subject: Subject) -> None:
    """Frozen, a layer computes in training what it does in evaluation, learns, and stands still, until it is thawed."""
    for settings in subject.settings:
        layer = subject.experienced(settings)
        if not any(True for _ in layer.buffers()):
            with pytest.raises(InputError) as raised:
                layer.freeze()
            assert_helpful(raised.value, received="freeze()")
            continue
        before, x = buffers_of(layer), subject.input()
        expected = of_layer(copy.deepcopy(layer).eval(), x)
        assert layer.freeze() is layer
        layer.eval().train()
        assert_same_results(of_layer(layer, x), expected)
        assert same_tensors(buffers_of(layer), before), "a frozen buffer moved"
        layer.reset_running_stats()
        assert same_tensors(buffers_of(layer), before), "a frozen buffer was reset"
        layer.freeze(False)
        layer(x)
        assert not same_tensors(buffers_of(layer), before), "a thawed layer stands still"


@law(when=lambda subject: subject.layer.facts.takes_reference)
def test_reference_batch(subject: Subject) -> None:
    """Without a reference batch evaluation raises; the first batch of training is the reference."""
    layer = subject.layer(C).double()
    error = refusal(layer.eval(), subject.input())
    assert error is not None
    assert_helpful(error, received="reference")
    state = state_of(layer)
    x = subject.input(seed=1)
    y = layer.train()(x)
    assert_close(y, subject.reference.formula(x, state, True, **arguments_of(layer, {})), "the reference itself")
    before = buffers_of(layer)
    for name, buffer in before.items():
        assert_close(buffer, state[name].to(buffer.dtype), name)
    layer(subject.input(seed=2))
    assert same_tensors(buffers_of(layer), before), "the reference is chosen once"
    assert refusal(layer.eval(), subject.input()) is None


@law(when=lambda subject: subject.layer.facts.takes_reference)
def test_nan_reference(subject: Subject) -> None:
    """A first batch with NaN is not hidden in the output, and is no reference: the next batch is."""
    for bad in (math.nan, math.inf):
        layer, x = subject.layer(C).double(), subject.input(seed=4)
        x[0, 0] = bad
        assert not layer(x).isfinite().all()
        assert refusal(copy.deepcopy(layer).eval(), subject.input()) is not None
        x, other = subject.input(seed=5), subject.layer(C).double()
        assert_close(layer(x), other(x))
        assert same_tensors(buffers_of(layer), buffers_of(other))


@law()
def test_train_differs(subject: Subject) -> None:
    """Evaluation differs from training exactly when the facts say so."""
    layer, x = subject.experienced(), subject.input()
    trained = fresh(layer, x)
    assert close(layer.eval()(x), trained) != subject.layer.facts.train_differs


@law()
def test_folds(subject: Subject) -> None:
    """Evaluation is a scale and a shift per channel; or of a weight, the same weight every time, whatever the input."""
    layer, x = subject.experienced().eval(), subject.input()
    if subject.on_weights:
        observed = torch.equal(layer(x), layer(x)) and not subject.layer.facts.reads_input
    else:
        at_zero, at_one = layer(torch.zeros_like(x)), layer(torch.ones_like(x))
        alike = all(close(v, v.mean([0, *range(2, x.dim())], keepdim=True).expand_as(v)) for v in (at_zero, at_one))
        observed = alike and close(layer(x), at_zero + (at_one - at_zero) * x)
    assert observed == subject.layer.facts.folds


@law()
def test_state(subject: Subject) -> None:
    """A layer restored from its state dict, a deep copy or a pickle computes the same, and shares no memory."""
    for settings in subject.settings:
        layer = subject.experienced(settings).eval()
        x = subject.input()
        y = layer(x)
        empty = subject.layer(C, **settings).double().eval()
        empty.load_state_dict(layer.state_dict(), strict=True)
        copies = {
            "state_dict": empty,
            "deepcopy": copy.deepcopy(layer),
            "pickle": pickle.loads(pickle.dumps(layer)),
        }
        for way, other in copies.items():
            assert torch.equal(other.eval()(x), y), way
            before = y.clone()
            other.train()(x)  # must not reach back into the layer it came from
            assert torch.equal(layer(x), before), way


@law(when=is_stateful)
def test_state_outlives_errors(subject: Subject) -> None:
    """A batch that the layer refuses, as a whole or in its last part, has moved no statistics."""
    for settings in subject.settings:
        for samples in range(1, 10):
            layer = subject.experienced(settings)
            before = buffers_of(layer)
            if refusal(layer, subject.input(samples=samples)) is not None:
                assert same_tensors(buffers_of(layer), before), f"{samples} samples, {settings}"
