"""Modules as onnxruntime runs them, and as `torch.jit.trace` records them."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

# Both compute in float32, in another order: the largest difference seen is 3e-7 of the largest value of a layer, and
# 3e-6 of a ResNet of eight layers.
TOLERANCE = 1e-5


def in_onnxruntime(module: nn.Module, x: Tensor, dynamic: dict[int, Any]) -> Callable[[Tensor], Tensor]:
    """The module, exported for the example x, as a function that onnxruntime evaluates.

    Args:
        module: in evaluation.
        x: the example, float32.
        dynamic: dimension -> its name or constraint, for dimensions that may have another size than those of x.
    """
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # no advice on what it optimizes
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    [name] = [given.name for given in session.get_inputs()]
    return lambda other: torch.from_numpy(session.run(None, {name: other.numpy()})[0])


@contextmanager
def without_tracer_warnings() -> Iterator[None]:
    """Asserts that tracing does not warn of a value that the graph keeps as it is for the example."""
    # Not the filter "error": torch turns an exception in the test of a size into a SystemError.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    assert not [str(w.message) for w in said if issubclass(w.category, torch.jit.TracerWarning)]
