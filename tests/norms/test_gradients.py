"""Gradients: difference quotients, `torch.func`, activation checkpointing, higher orders."""

import torch
from laws import assert_close, assert_same_results, few_and_many, law, of_layer, tests_of
from subjects import Subject, outputs_and_gradients

from normzoo.norms._ops.cpu import SMALL
from normzoo.testing import gradients

globals().update(tests_of(gradients))  # the laws that hold for layers outside the zoo, too


@law(when=lambda subject: subject.layer.facts.brings_activation)
def test_ties(subject: Subject) -> None:
    """Where two branches of the activation meet, the gradient is the mean of both, as a central difference quotient."""
    h = 1e-3
    for x in few_and_many(subject):
        x.zero_()
        layer = subject.default(x.shape[1])
        found = of_layer(layer, x)
        if subject.layout == "NCHW" and x.numel() < SMALL and x.is_contiguous():
            torch._dynamo.reset()
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
            assert_same_results(outputs_and_gradients(compiled, x, dict(layer.named_parameters())), found)
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)  # as in `of_layer`
        for name, p in layer.named_parameters():
            ends = []
            for step in (h, -2 * h, h):
                p.data.add_(step)
                ends.append((layer(x).detach() * dy).sum((0, *range(2, x.dim()))))
            assert_close(found[f"gradient of {name}"], (ends[0] - ends[1]) / (2 * h), name, 1e-6)
