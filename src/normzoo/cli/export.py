"""`normzoo export`: writes the network of a checkpoint for other programs, checked before it is written."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normzoo.cli.commands import ArgumentParser, add_checkpoint, require_new
from normzoo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Run = Callable[[Tensor], Any]  # an exported network

TOLERANCE = 1e-4
"""The largest difference of the exported network's output, relative to its largest value."""


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo export`."""
    parser = ArgumentParser(
        prog="normzoo export",
        allow_abbrev=False,
        description="Write the network of a checkpoint, in evaluation, for any number of samples: FILE.onnx for "
        "onnxruntime and others, FILE.pt2 as a program of torch.export. The file is written if its output is the "
        "network's.",
    )
    add_checkpoint(parser)
    parser.add_argument("--fold", action="store_true", help="fold the norms into the layers beside them first")
    given = parser.parse_args(arguments)
    require_new(given.output)
    writers = {".onnx": onnx, ".pt2": program}
    if (suffix := Path(given.output).suffix) not in writers:
        raise InputError(f"--output={given.output!r}: the file is called *.onnx or *.pt2.")

    from normzoo.runs import checkpoints  # and with it torch
    from normzoo.runs.atomic import written_whole
    from normzoo.runs.loaded_task import load_task
    from normzoo.surgery import fold

    file = checkpoints.find_checkpoint(given.path, Path(given.runs), given.experiment)
    task = load_task(file, allow=[name for name in given.allow.split(",") if name])
    if (x := example_of(task, checkpoints.saved_model(checkpoints.load_checkpoint(file), file))) is None:
        raise InputError(
            f"the shape of an input is unknown: set self.example_input_array = torch.randn(1, ...), one tensor, in "
            f"{type(task).__name__}.__init__, or give its network the attribute input_shape, without the samples."
        )
    net = network_of(task).eval()
    if given.fold:
        print(fold(net, x))
    written, run = writers[suffix](net, x)
    change = check(net, run, x)
    with written_whole(Path(given.output)) as out:
        out.write(written)
    print(f"{'exported':12} {given.output} ({len(written) / 1e6:.2f} MB), outputs within {change:.0e} of the network's")


def network_of(task: Any) -> Any:
    """The network of a task: its `net`, else itself."""
    return getattr(task, "net", task)


def example_of(task: Any, config: Any = None) -> "Tensor | None":
    """Two samples for a task: its `example_input_array`, or numbers of its network's `input_shape`; None if unknown.

    Args:
        task: the task.
        config: its settings, which name the shape if the network has taken it as an argument.
    """
    import torch

    given, shape = task.example_input_array, getattr(network_of(task), "input_shape", None)
    if isinstance(given, torch.Tensor):
        # Zeros, or memory without values, as an example often is, would show no difference.
        if not given.is_floating_point() or (given.isfinite().all() and given.min() < given.max()):
            return torch.cat([given] * 2)[:2]
        shape = given.shape[1:]
    net = ((config or {}).get("init_args") or {}).get("net")
    if shape is None and isinstance(net, Mapping):
        shape = (net.get("init_args") or {}).get("input_shape")
    return None if shape is None else torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def check(net: "nn.Module", run: "Run", x: "Tensor") -> float:
    """The largest difference of an exported network's outputs for 1, 2 and 5 samples, relative to its largest value.

    Raises:
        InputError: it is larger than that of rounding.
    """
    import torch

    from normzoo.surgery.fold import largest_change

    changes = []
    for samples in (1, 2, 5):
        batch = torch.cat([x] * 3)[:samples]
        if x.is_floating_point():
            batch = batch * torch.linspace(1, 2, samples).view(-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            changes.append(largest_change(outputs(net(batch)), outputs(run(batch))))
    change = max(changes, key=lambda one: (one != one, one))  # NaN if one of them is
    if not change <= TOLERANCE:
        raise InputError(
            f"the exported network's output differs by {change:.0e} of its largest value: nothing is written."
        )
    return change


def outputs(result: Any) -> "list[Tensor]":
    """The tensors in what a network returns, as float64."""
    from normzoo.monitoring.probe import tensors

    return [one.double() for one in tensors(result)]


def onnx(net: "nn.Module", x: "Tensor") -> "tuple[bytes, Run]":
    """A network as the bytes of an ONNX file, and as onnxruntime runs it."""
    import torch

    try:
        import onnxruntime  # type: ignore[import-untyped] # it has no types
        import onnxscript  # noqa: F401 - what torch.onnx needs
    except ImportError as error:
        raise InputError(
            f"export to ONNX needs {error.name}: pip install 'normzoo[export]', or write FILE.pt2."
        ) from error
    try:
        made = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise InputError(
            f"the network cannot be exported to ONNX: {reason(error)}; write FILE.pt2, or use another norm."
        ) from error
    assert made is not None
    written: bytes = made.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no advice on what it optimizes
    session = onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return written, lambda batch: [torch.from_numpy(one) for one in session.run(None, {name: batch.numpy()})]


def program(net: "nn.Module", x: "Tensor") -> "tuple[bytes, Run]":
    """A network as the bytes of a file of torch.export, and as that file runs."""
    import torch

    file = io.BytesIO()
    try:
        made = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # of many kinds, without a public base
        raise InputError(
            f"torch.export cannot export the network for any number of samples: {reason(error)}."
        ) from error
    torch.export.save(made, file)
    file.seek(0)
    run = torch.export.load(file).module()
    return file.getvalue(), run


def reason(error: BaseException) -> str:
    """The line of an exporter's error that says what is missing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".")
