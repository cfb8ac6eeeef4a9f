"""`normzoo export`: writes the network of a checkpoint for other programs, checked before it is written."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normzoo.cli.commands import ArgumentParser, add_checkpoint, require_new
from normzoo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    if (x := example_of(task)) is None:
        raise InputError(
            f"the shape of an input is unknown: set self.example_input_array = torch.zeros(1, ...) in "
            f"{type(task).__name__}.__init__, or give its network the attribute input_shape, without the samples."
        )
    net = getattr(task, "net", task).eval()
    if given.fold:
        print(fold(net, x))
    written, run = writers[suffix](net, x)
    change = largest_change(net, run, x)
    with written_whole(Path(given.output)) as out:
        out.write(written)
    print(f"{'exported':12} {given.output} ({len(written) / 1e6:.2f} MB), outputs within {change:.0e} of the network's")


def example_of(task: Any) -> "Tensor | None":
    """Two samples for a task: its `example_input_array`, or images of its network's `input_shape`; None if unknown."""
    import torch

    given, shape = task.example_input_array, getattr(getattr(task, "net", None), "input_shape", None)
    if isinstance(given, torch.Tensor):
        return torch.cat([given] * 2)
    return None if shape is None else torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def largest_change(net: "nn.Module", run: "Callable[[Tensor], Tensor]", x: "Tensor") -> float:
    """The largest difference of an exported network's output for 1, 2 and 5 samples, relative to its largest value.

    Raises:
        InputError: it is larger than that of rounding.
    """
    import torch

    change = 0.0
    for samples in (1, 2, 5):
        batch = torch.cat([x] * 3)[:samples] * torch.linspace(1, 2, samples).view(-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            expected = net(batch)
        change = max(change, float((run(batch) - expected).abs().max() / expected.abs().max()))
    if not change <= TOLERANCE:
        raise InputError(
            f"the exported network's output differs by {change:.0e} of its largest value: nothing is written."
        )
    return change


def onnx(net: "nn.Module", x: "Tensor") -> "tuple[bytes, Callable[[Tensor], Tensor]]":
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
    return written, lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def program(net: "nn.Module", x: "Tensor") -> "tuple[bytes, Callable[[Tensor], Tensor]]":
    """A network as the bytes of a file of torch.export, and as that file runs."""
    import torch

    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)), file)
    file.seek(0)
    run = torch.export.load(file).module()
    return file.getvalue(), run


def reason(error: BaseException) -> str:
    """The line of an exporter's error that says what is missing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]
