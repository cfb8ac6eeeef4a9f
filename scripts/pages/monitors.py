"""docs/monitors.md: what each monitor shows, with its tags and units, from the classes themselves."""

import inspect
from pathlib import Path

from normzoo import callbacks
from normzoo.monitoring.monitor import Monitor

HEAD = """# What a layer does, in TensorBoard

<!-- Made by scripts/docs from the docstrings, tags and units in src/normzoo/callbacks/. -->

Six callbacks, one per question. Each works in any Lightning project, whatever its network is made of, and leaves the
training as it is, to the bit. All of them at once:

```sh
normzoo fit -c configs/digits_mlp.yaml -c configs/monitors.yaml
```

or one, by flags or in a Trainer of your own:

```sh
normzoo fit --trainer.callbacks+=CovariateShift --trainer.callbacks.every=20
```

```python
from lightning.pytorch import Trainer
from normzoo.callbacks import CovariateShift, GradientFlow

trainer = Trainer(callbacks=[CovariateShift(), GradientFlow(every=10, layers="encoder.*")])
```

`every` is a number of optimizer steps or any function of the step (`Every(50, start=1000)`, `Logarithmic(20)`, a
lambda); `layers` names modules, with `*`, or their class. What is sampled at step t is the network before its update.

## Where to look

**Time Series.** A group of cards per metric, a card per layer, the newest run beside the others.

![Time Series: a group per metric, a card per layer](monitors-timeseries.png)

**Custom Scalars.** Per question the charts that answer it: the band of the percentiles of each layer, the depth
profiles with a line per layer.

![Custom Scalars: the band of percentiles](monitors-custom-scalars.png)
![Custom Scalars: depth profiles of the covariate shift](monitors-depth.png)

**Images.** Layers over steps, drawn when the run ends.

![Images: layers over steps](monitors-heatmaps.png)

**Histograms.** The channels of running statistics, weights and biases, and the inputs of the nonlinearities, rarely.

Beside the scalars each sample is written once more as one tensor `[layers, metrics]` named `normalization/CALLBACK`,
with the names in the first record of the run (plugin `normalization`): made for tools that read whole tables.

## Good to know

- A layer that runs twice in a step counts with both passes. One that does not run is named in a warning and left out.
- NaN and infinity are shown as they are, and named once with step and layer. The training decides what to do.
- On several ranks everything is of all batches together, each sample counting once; only the first rank writes.
  `GradientFlow` shows the gradients of the step itself, in which each rank counts the same, as DDP has it: that is
  another thing when their batches differ in size.
- A compiled network runs its own graphs at every step. What hooks would see is seen on a copy that runs the same batch
  eagerly; with dropout that draws other random numbers than the graph does.
- Loggers other than TensorBoard's get the scalars.
- With `accumulate_grad_batches` the activations are those of the first batch of a step, its gradients those of all.
- A checkpoint holds the references and histories, so that a resumed run goes on with them.
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
