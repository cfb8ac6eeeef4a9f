"""What every layer should compute: slow, obvious formulas written from the papers, and implementations by others.

A formula takes x (N, C, *), or a weight (C, I, *); the state of the layer, parameters and buffers by name, whose
buffers it moves itself; whether the layer trains; and the layer's arguments. It walks over the sets of values that
share their statistics, one by one, in the precision of x, and gradients flow through it as the paper lets them.

A new layer needs one row in `REFERENCES` of its family, under the name of its class; a new argument, one in
`OUT_OF_RANGE`.
"""

import pytest

from references import batch, mixed, pointwise, sample, weight, whitening
from references._base import Oracle as Oracle
from references._base import Reference as Reference
from references._base import State as State
from references.arguments import OUT_OF_RANGE as OUT_OF_RANGE

REFERENCES: dict[str, Reference] = {
    **batch.REFERENCES,
    **sample.REFERENCES,
    **mixed.REFERENCES,
    **whitening.REFERENCES,
    **weight.REFERENCES,
    **pointwise.REFERENCES,
}


def reference(name: str) -> Reference:
    """The reference of the layer class with this name."""
    if name not in REFERENCES:
        pytest.fail(
            f"{name} has no reference: write its formula from the paper, slow and obvious, in the file of its family "
            f"in tests/helpers/references/, and add it to REFERENCES there under {name!r}."
        )
    return REFERENCES[name]
