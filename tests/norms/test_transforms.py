"""Forward-mode differentiation, batches of gradients, ensembles, and tracing: on few values and on many."""

import torch
from exported import without_tracer_warnings
from laws import LARGE, assert_close, law, tests_of
from subjects import LAYOUTS, C, Subject

from normzoo.testing import transforms
from normzoo.testing._subject import built_with_inputs

globals().update(tests_of(transforms))  # the laws that hold for layers outside the zoo, too


@law()
def test_tracing(subject: Subject) -> None:
    """`torch.jit.trace`, with which TensorBoard draws a graph, gives the layer's function, without a warning."""
    for layer, x in built_with_inputs(subject):
        layer.eval()
        with torch.no_grad():
            with without_tracer_warnings():
                traced = torch.jit.trace(layer, x, check_trace=False)
            other = 0.5 * x + 0.1
            assert_close(traced(other), layer(other))


def test_sizes_lie_on_both_sides_of_the_threshold() -> None:
    """Otherwise the laws here would try one path only."""
    from normzoo.norms._ops.cpu import SMALL

    for layout, sizes in LARGE.items():
        assert torch.Size(LAYOUTS[layout]).numel() <= SMALL < torch.Size(sizes).numel()
    assert C == 8
