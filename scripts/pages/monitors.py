"""docs/monitors.md: what each monitor shows, with its metrics and units, from the classes themselves."""

import inspect
from pathlib import Path

from normzoo import callbacks
from normzoo.monitoring.monitor import Monitor
from normzoo.monitoring.overview import BY_LAYER, OVERVIEWS

HEAD = """# What the monitors show

<!-- Made by scripts/docs from the docstrings, metrics and units in src/normzoo/. -->

Six callbacks, each for one question, and a seventh, `Verdicts`, that says in words what is wrong. `normzoo fit` has all
of them unless `--monitors=false`. They work in [any Lightning
project](lightning.md) with any network, and do not change the training by a bit. [See it in five minutes](see.md); [my
network does not train](faults.md); [the rules of the verdicts](verdicts.md); [what the event files hold](data.md).

Other rates or layers, by flags or in your own Trainer:

```sh
normzoo fit --trainer.callbacks+=CovariateShift --trainer.callbacks.every=20
```

```python
from lightning.pytorch import Trainer
from normzoo.callbacks import CovariateShift, GradientFlow

trainer = Trainer(callbacks=[CovariateShift(), GradientFlow(every=10, layers="encoder.*")])
```

`every` is a number of optimizer steps or a function of the step (`Every(50, start=1000)`, `Logarithmic(20)`, a lambda).
By default a run has about twenty samples of everything, ten of the landscape, or, where it is long, more. `layers`
selects modules by name, with `*`, or by class. The sample at step t shows the network before its update.

## Where to look

**The page.** `normzoo report lightning_logs/digits_mlp --open` writes one file with all views, which opens in any
browser. TensorBoard shows the same page, live, in the tab **Normalization**; `normzoo.page.report(runs)` writes it from
Python.

![The tab Normalization in TensorBoard](tensorboard-tab.png)

**Time Series.** A few scalars that tell the story, named so that they come in order; `normzoo fit` prints the address
that opens on the most telling ones. Logarithms where values span decades. **Custom Scalars** has them as six questions,
the same for every run. **Text** has the verdicts.

![Time Series: without a norm the first layer's gradient is 1e-5 of the last layer's](tensorboard-time-series.png)

{overview}

## Covariate shift: four numbers with one name

| what changes | metric | what to expect |
|---|---|---|
| **over time**: a layer's input since the first sample | `drift_w2` | {over_time} |
| **over depth**: from the network's input to a layer's; over a block | `depth_w2`, `block_w2` | {over_depth} |
| **by gradients**: once the layers below have moved | `ics_relative`, `ics_cosine` | {by_gradients} |
| **from training to evaluation**, at equal weights | `val_w2`, `test_w2` | {evaluation} |

## Good to know

- For a layer that runs twice in a step, both passes count. A layer that does not run is left out, with a warning.
- With several ranks, a metric is computed over the batches of all ranks, each sample with the same weight; the first
  rank writes. `GradientFlow` shows the gradients of the step itself: DDP gives each rank the same weight, also if their
  batches differ in size.
- A compiled network keeps its graphs. Hooks do not fire in them: the layers are read on a copy of the network that runs
  the same batch eagerly. With dropout, the copy draws other random numbers than the graph.
- Other loggers than TensorBoard's receive the scalars of Time Series, and no tables.
- With `accumulate_grad_batches`, activations and `flow_norm` are those of the first batch of a step, the gradients of
  weights those of all its batches.
- Units are features: of an input (N, L, C) of a linear layer, of a norm with `channel_dim=-1`, and of an activation
  behind them, the C values, not the L tokens.
- Checkpoints hold references, probe batches and verdicts; a resumed run continues with them.
"""

EXPECT = {
    "over_time": "without a norm in a deep network it rises with depth, by orders; with BatchNorm it is small and "
    "level",
    "over_depth": "it rises with depth where activations are unbounded and there is no norm, as in ReLU networks; "
    "sigmoid, tanh and norms keep it level",
    "by_gradients": "larger with BatchNorm than without, in many networks: Santurkar et al. 2018 found this, and it is"
    " no fault. Where gradients vanish nothing moves, and it is near 0",
    "evaluation": "up to twice the noise floor, `val_w2_floor`, which two sets of batches of one distribution give",
}


def write(root: Path) -> list[Path]:
    """Writes docs/monitors.md under `root`."""
    path = root / "docs" / "monitors.md"
    path.write_text(the_page())
    return [path]


def the_page() -> str:
    """The whole page."""
    monitors = [one for one in vars(callbacks).values() if isinstance(one, type) and issubclass(one, Monitor)]
    order = ("RunningStatistics", "CovariateShift", "GradientFlow")
    monitors.sort(key=lambda one: order.index(one.__name__) if one.__name__ in order else len(order))
    head = HEAD.format(overview=scalars(), **EXPECT)
    return "\n".join([head, *(section(one) for one in monitors)])


def scalars() -> str:
    """The table of the scalars."""
    rows = [(one.tag, one.meaning) for one in OVERVIEWS]
    rows += [(f"{group}/LAYER", meaning) for group, _, meaning in BY_LAYER.values()]
    return "\n".join(["| scalar | what it is |", "|---|---|", *(f"| `{tag}` | {what} |" for tag, what in sorted(rows))])


def section(monitor: type[Monitor]) -> str:
    """What a callback says of itself, and a table of its metrics."""
    module = inspect.getmodule(monitor)
    assert module is not None
    [question] = (module.__doc__ or "").strip().splitlines()[:1]
    text = inspect.cleandoc(monitor.__doc__ or "").replace("Args:\n", "Arguments:\n\n")
    lines, body = text.splitlines(), []
    for line in lines:
        stripped = line.strip()
        if line.startswith("    ") and ": " in stripped and not line.startswith("      "):
            name, _, what = stripped.partition(": ")
            body.append(f"- `{name}`: {what}" if name.isidentifier() else f"- {stripped}")
        elif line.startswith("      "):
            body.append(f"  {stripped}")
        else:
            body.append(line.replace("Raises:", "Raises:\n"))
    one = monitor()  # type: ignore[call-arg]
    rows = list(one.metrics.items())
    table = ["| metric | what it is |", "|---|---|", *(f"| `{tag}` | {told} |" for tag, told in rows)]
    return "\n".join([f"## {monitor.__name__}: {question[0].lower()}{question[1:]}", "", *body, "", *table, ""])
