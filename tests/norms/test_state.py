"""Running statistics and state dicts: what changes when, and what is saved."""

import copy
import math

import pytest
from laws import (
    assert_close,
    assert_helpful,
    assert_same_results,
    buffers_of,
    law,
    of_layer,
    refusal,
    same_tensors,
    tests_of,
)
from subjects import C, Subject, arguments_of, state_of

from normzoo.errors import InputError
from normzoo.testing import evaluation, state

globals().update(tests_of(state) | tests_of(evaluation))  # the laws that hold for layers outside the zoo, too


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
    expected = state_of(layer)
    x = subject.input(seed=1)
    y = layer.train()(x)
    assert_close(y, subject.reference.formula(x, expected, True, **arguments_of(layer, {})), "the reference itself")
    before = buffers_of(layer)
    for name, buffer in before.items():
        assert_close(buffer, expected[name].to(buffer.dtype), name)
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
