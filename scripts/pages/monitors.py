"""docs/monitors.md: what each monitor shows, with its tags and units, from the classes themselves."""

import inspect
from pathlib import Path

from normzoo import callbacks
from normzoo.monitoring.monitor import Monitor

HEAD = """# What a layer does, in TensorBoard

<!-- Made by scripts/docs from the docstrings, tags and units in src/normzoo/callbacks/. -->

Six callbacks, each for one question. They work in any Lightning project with any network, and do not change the
training by a bit. All of them at once:

```sh
normzoo fit -c configs/digits_mlp.yaml -c configs/monitors.yaml
```

One of them, by flags or in your own Trainer:

```sh
normzoo fit --trainer.callbacks+=CovariateShift --trainer.callbacks.every=20
```

```python
from lightning.pytorch import Trainer
from normzoo.callbacks import CovariateShift, GradientFlow

trainer = Trainer(callbacks=[CovariateShift(), GradientFlow(every=10, layers="encoder.*")])
```

`every` is a number of optimizer steps or a function of the step (`Every(50, start=1000)`, `Logarithmic(20)`, a lambda).
`layers` selects modules by name, with `*`, or by class. The sample at step t shows the network before its update.

## Where to look

**Time Series.** A group of cards for each metric, a card for each layer, all runs in one chart.

![Time Series: a group per metric, a card per layer](monitors-timeseries.png)

**Custom Scalars.** The charts for each question: the percentiles of each layer as a band, depth profiles with a line
for each layer.

![Custom Scalars: the band of percentiles](monitors-custom-scalars.png)
![Custom Scalars: depth profiles of the covariate shift](monitors-depth.png)

**Images.** Heatmaps of layers over steps, drawn at the end of the run.

![Images: layers over steps](monitors-heatmaps.png)

**Histograms.** The running statistics, weights and biases of all channels, and the inputs of the nonlinearities, every
500 steps.

Each sample is also written as one tensor `[layers, metrics]`, `normalization/CALLBACK`, for tools that read whole
tables. The first record of the run holds the names of rows and columns.

## Good to know

- For a layer that runs twice in a step, both passes count. A layer that does not run is left out, with a warning.
- NaN and infinity are written as they are. A warning names the first step and layer with such a value.
- With several ranks, a metric is computed over the batches of all ranks, each sample with the same weight; the first
  rank writes. `GradientFlow` shows the gradients of the step itself: DDP gives each rank the same weight, also if their
  batches differ in size.
- A compiled network keeps its graphs. Hooks do not fire in them: the layers are read on a copy of the network that runs
  the same batch eagerly. With dropout, the copy draws other random numbers than the graph.
- Other loggers than TensorBoard's receive the scalars.
- With `accumulate_grad_batches`, activations and `flow_norm` are those of the first batch of a step, the gradients of
  weights those of all its batches.
- Checkpoints hold references and histories; a resumed run continues with them.
"""


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
    return "\n".join([HEAD, *(section(one) for one in monitors)])


def section(monitor: type[Monitor]) -> str:
    """What a callback says of itself, and a table of its tags."""
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
    rows = [(one.tag(metric, "LAYER"), told) for metric, told in one.metrics.items()]
    rows += [(tag if not tag.endswith("/") else f"{tag}...", told) for tag, told in one.totals.items()]
    table = ["| tag | what it is |", "|---|---|", *(f"| `{tag}` | {told} |" for tag, told in rows)]
    return "\n".join([f"## {monitor.__name__}: {question[0].lower()}{question[1:]}", "", *body, "", *table, ""])
