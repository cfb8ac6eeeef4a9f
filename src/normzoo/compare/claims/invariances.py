"""What a normalized layer ignores: table 1 of the paper on layer normalization, cell by cell."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from normzoo.compare.claims._claim import Claim, Rule, Values
from normzoo.compare.claims._run import Run
from normzoo.models import Block
from normzoo.norms import BatchNorm, LayerNorm, Norm, WeightNorm

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the weights (C, I) and the inputs (N, I) to others."""

CHANGES: dict[str, Change] = {
    "weight matrix re-scaling": lambda w, x: (3 * w, x),
    "weight matrix re-centering": lambda w, x: (w + x[0], x),  # the same vector for all units
    "weight vector re-scaling": lambda w, x: (scaled_first(w), x),
    "dataset re-scaling": lambda w, x: (w, 3 * x),
    "dataset re-centering": lambda w, x: (w, x + w[0]),  # the same vector for all samples
    "single training case re-scaling": lambda w, x: (w, scaled_first(x)),
}
NORMS: dict[str, Callable[[int], Norm]] = {
    "batch norm": partial(BatchNorm, eps=1e-300),
    "weight norm": WeightNorm,
    "layer norm": partial(LayerNorm, eps=1e-300),
}
# The paper's table: with which of these norms a layer is invariant to the change.
INVARIANT = {
    "weight matrix re-scaling": {"batch norm", "weight norm", "layer norm"},
    "weight matrix re-centering": {"layer norm"},
    "weight vector re-scaling": {"batch norm", "weight norm"},
    "dataset re-scaling": {"batch norm", "layer norm"},
    "dataset re-centering": {"batch norm"},
    "single training case re-scaling": {"layer norm"},
}
KEPT, CHANGED = "largest relative change where invariant", "smallest relative change where not"
CELLS = "cells of 18 as in the table"


def measure(seed: int, runs: Sequence[Run]) -> Values:
    """By how much each change of weights or inputs changes the outputs of each layer, relative to the largest."""
    torch.manual_seed(seed)
    x = torch.randn(32, 16, dtype=torch.float64)
    kept: list[float] = []
    changed: list[float] = []
    for change, invariant in INVARIANT.items():
        for norm in NORMS:
            (kept if norm in invariant else changed).append(relative_change(norm, change, x))
    right = sum(one <= 1e-8 for one in kept) + sum(one > 1e-8 for one in changed)
    return {CELLS: right, KEPT: max(kept), CHANGED: min(changed)}


def relative_change(norm: str, change: str, x: Tensor) -> float:
    """`max |y' - y| / max |y|` of a layer of 8 units and its norm, in training."""
    block = Block(nn.Linear(16, 8), NORMS[norm], activation=None).double()
    weight = dict(block.layer.named_parameters()).get("parametrizations.weight.original", block.layer.weight)
    with torch.no_grad():
        before = block(x)
        new, x = CHANGES[change](weight.clone(), x)
        weight.copy_(new)
        return ((block(x) - before).abs().max() / before.abs().max()).item()


def scaled_first(rows: Tensor) -> Tensor:
    """Rows of which the first is three times as large."""
    factors = torch.ones(len(rows), 1, dtype=rows.dtype)
    factors[0] = 3
    return factors * rows


CLAIM = Claim(
    name="invariances",
    paper=str(LayerNorm.facts.paper),
    place="section 5.1, table 1",
    statement="Batch, weight and layer normalization each ignore some changes of the weights and of the data, and not "
    "others.",
    figure="10 of 18 cells say invariant",
    setting="A linear layer of 8 units and its norm on 32 samples, in float64; nothing is trained.",
    grids={},
    measure=measure,
    rules=(Rule(CELLS, least=18), Rule(KEPT, most=1e-8)),
)
