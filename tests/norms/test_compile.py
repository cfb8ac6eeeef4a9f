"""`torch.compile` in one graph, to the results of the eager layer."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from laws import assert_same_buffers, assert_same_results, law, of_layer, on_images, on_vectors_or_images
from subjects import Subject, outputs_and_gradients
from torch._dynamo.utils import counters  # torch counts graphs nowhere public


def compiled_equals_eager(
    subject: Subject, backend: str, settings: Mapping[str, Any] | None = None, modes: tuple[bool, ...] = (True, False)
) -> None:
    for training in modes:
        torch._dynamo.reset()
        counters.clear()
        eager = subject.experienced(settings, dtype=torch.float32).train(training)
        eager._forward_pre_hooks.clear()  # a graph cannot seed the generator
        twin = copy.deepcopy(eager)
        compiled = torch.compile(twin, fullgraph=True, backend=backend)
        parameters = dict(twin.named_parameters())
        graphs = []
        for seed in (0, 1):
            x = subject.input(seed, dtype=torch.float32)
            observed = outputs_and_gradients(compiled, x, parameters)
            assert_same_results(observed, of_layer(eager, x), 1e-4)
            assert_same_buffers(twin, eager, 1e-5)
            graphs.append(counters["stats"]["unique_graphs"])
        assert graphs[0] == graphs[1] == 1, f"graphs after each call: {graphs}"


@pytest.mark.slow
@law(when=on_images)
def test_compile_without_codegen(subject: Subject) -> None:
    """Traced and differentiated ahead of time, in training, the layer is one graph and equals itself."""
    compiled_equals_eager(subject, "aot_eager", modes=(True,))


@pytest.mark.slow
@law(when=on_images)
def test_compile_in_evaluation(subject: Subject) -> None:
    """The same in evaluation."""
    compiled_equals_eager(subject, "aot_eager", modes=(False,))


@pytest.mark.slow
@law(when=on_images)
def test_compile_settings(subject: Subject) -> None:
    """The same with all settings that the reference names."""
    for settings in subject.reference.settings:
        compiled_equals_eager(subject, "aot_eager", settings)


@pytest.mark.slow
@law(when=on_vectors_or_images)
def test_compile_with_inductor(subject: Subject) -> None:
    """The same with code that inductor generates."""
    compiled_equals_eager(subject, "inductor")
