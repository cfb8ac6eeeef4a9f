"""`scripts/bench norms`: every layer of the zoo against the built-in batch norm, and against its like by others.

What is timed is a forward and a backward pass in training, `torch.autograd.grad` to the input and the parameters, of
layers that take turns: the layer, TorchBatchNorm, a clone of the tensor, the implementations by others that
tests/helpers/references names; and again from the start. The ratio of two is the median of their ratios. A layer
that acts on weights gets the same tensor as a weight. Compiled means fullgraph by inductor, on the first two images
that are asked for, contiguous: there both sides of a ratio are compiled.

What is saved for the backward pass is counted in bytes of distinct storages: those that pass autograd's hooks, and
those that a hand-written autograd.Function keeps as attributes, such as small tables, which the hooks do not see.

Settings are those of the command line. It judges nothing: marks are shown as met or missed, and the
exit status is 0. On a busy machine the numbers say little: threads that wait for each other count in every short pass.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from types import FunctionType
from typing import Any

from normzoo.cli.runtime import keep_pages, share_cores

share_cores()  # before torch is imported
os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests" / "helpers")]
from machine import describe  # beside this file
from references import REFERENCES, Oracle

from normzoo.norms import Norm, TorchBatchNorm, layers

SHAPES = ((128, 64, 32, 32), (64, 256, 14, 14), (32, 64, 56, 56), (128, 100), (4096, 512))
WARMUP = 2
COMPILED_SHAPES = 2

Pass = Callable[[], object]


@dataclass
class Cost:
    """What one layer costs on one shape, in one layout, eager or compiled."""

    layer: str
    shape: tuple[int, ...]
    layout: str
    compiled: bool
    milliseconds: float = float("nan")
    builtin: float = float("nan")
    """ratio to TorchBatchNorm, compiled as well where the layer is"""
    clones: float = float("nan")
    """ratio to one clone of the tensor"""
    oracles: dict[str, float] = field(default_factory=dict)
    """ratio to each implementation by others"""
    saved: int = 0
    """bytes kept for the backward pass"""
    builtin_saved: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    """what could not be measured, and why"""


@dataclass(frozen=True)
class Mark:
    """A bound on one number of every cost that it is about."""

    says: str
    most: float
    about: Callable[[Cost], bool]
    number: Callable[[Cost], float]


def on_images(cost: Cost) -> bool:
    """Whether it was measured on (N, C, H, W)."""
    return len(cost.shape) == 4


def of_batch_norm(*, compiled: bool = False, layout: str = "contiguous") -> Callable[[Cost], bool]:
    """The costs of the project's own batch norm on images."""

    def about(cost: Cost) -> bool:
        images = on_images(cost) and cost.layout == layout
        return cost.layer == "BatchNorm" and cost.compiled == compiled and images

    return about


def of_any(*, compiled: bool) -> Callable[[Cost], bool]:
    """The costs of every layer on images. Whitening, which decomposes matrices, stands apart."""

    def about(cost: Cost) -> bool:
        whitens = layers()[cost.layer].facts.family == "whitening"
        return on_images(cost) and cost.compiled == compiled and not whitens

    return about


def ratio_to_fastest_oracle(cost: Cost) -> float:
    """The ratio to the fastest of those by others."""
    return max(cost.oracles.values(), default=float("nan"))


def saved_ratio(cost: Cost) -> float:
    """Bytes kept for the backward pass, to those that the built-in keeps."""
    return cost.saved / cost.builtin_saved if cost.builtin_saved else float("nan")


MARKS = (
    Mark("BatchNorm / built-in, images", 1.0, of_batch_norm(), lambda c: c.builtin),
    Mark("BatchNorm / built-in, channels-last", 2.0, of_batch_norm(layout="channels-last"), lambda c: c.builtin),
    Mark("BatchNorm / built-in, both compiled", 1.0, of_batch_norm(compiled=True), lambda c: c.builtin),
    Mark(
        "BatchNorm compiled / 4 clones, (128, 64, 32, 32)",
        2.0,
        lambda c: of_batch_norm(compiled=True)(c) and c.shape == SHAPES[0],
        lambda c: c.clones / 4,
    ),
    Mark(
        "BatchNorm / built-in, (128, 100)",
        2.5,
        lambda c: c.layer == "BatchNorm" and c.shape == (128, 100) and not c.compiled,
        lambda c: c.builtin,
    ),
    Mark(
        "BatchNorm / built-in, bytes saved",
        1.0,
        lambda c: c.layer == "BatchNorm" and not c.compiled and on_images(c),
        saved_ratio,
    ),
    Mark(
        "each layer / the same by others, images",
        1.0,
        lambda c: on_images(c) and bool(c.oracles),
        ratio_to_fastest_oracle,
    ),
    Mark("each layer / built-in, images", 3.0, of_any(compiled=False), lambda c: c.builtin),
    Mark("each layer / built-in, images, both compiled", 1.5, of_any(compiled=True), lambda c: c.builtin),
)


def main() -> None:
    """Measures, prints a row per layer and shape, and then the marks."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench norms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAMES", help="which layers, separated by commas; all of them by default")
    parser.add_argument("--shapes", metavar="SHAPES", help="such as 128x64x32x32,128x100")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count")
    parser.add_argument("--no-compile", action="store_true", help="eager only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there; scripts/docs reads them")
    parser.add_argument("--default_allocator", action="store_true", help="let the C library return freed pages")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(layers())
    for name in names:
        if name not in layers():
            parser.error(f"no layer is called {name}. The zoo has {', '.join(layers())}")
    if arguments.rounds < 1:
        parser.error(f"--rounds={arguments.rounds}: at least one turn counts; the default is 7")
    shapes = SHAPES
    if arguments.shapes:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,3}(,[1-9]\d*(x[1-9]\d*){1,3})*", arguments.shapes):
            parser.error(f"--shapes={arguments.shapes}: give sizes of 2 to 4 axes, as in 128x64x32x32,128x100")
        shapes = tuple(tuple(int(size) for size in shape.split("x")) for shape in arguments.shapes.split(","))
    kept = not arguments.default_allocator and keep_pages()
    pages = "pages kept" if kept else "default allocator"
    settings = f"{torch.get_num_threads()} threads, {pages}, load of the machine at the start {os.getloadavg()[0]:.1f}"
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(describe(), f"settings  {settings}", sep="\n", highlight=False)

    work = list(cases(names, shapes, compiles=not arguments.no_compile))
    costs = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(work))
        for name, shape, layout, compiled in work:
            progress.update(bar, description=f"{name} {shape} {'compiled' if compiled else layout}")
            costs.append(measure(name, shape, layout, compiled=compiled, rounds=arguments.rounds))
            progress.advance(bar)
    console.print(table_of(costs))
    for cost in costs:
        for what, why in cost.problems.items():
            console.print(f"not measured: {what}, {cost.layer} {cost.shape} {cost.layout}: {why}", highlight=False)
    console.print(table_of_marks(costs, full=kept))
    if arguments.json:
        report = {"machine": describe(), "settings": settings, "costs": [asdict(cost) for cost in costs]}
        arguments.json.write_text(json.dumps(without_nan(report), indent=1) + "\n")


def cases(names: list[str], shapes: tuple[tuple[int, ...], ...], *, compiles: bool) -> Iterator[Any]:
    """(name, shape, layout, compiled), for what the layers can take."""
    images = [shape for shape in shapes if len(shape) == 4]
    for name in names:
        for shape in shapes:
            if len(shape) == 2 and not layers()[name].facts.dense:
                continue
            yield name, shape, "contiguous", False
            if len(shape) == 4:
                yield name, shape, "channels-last", False
        for shape in images[:COMPILED_SHAPES] if compiles else ():
            yield name, shape, "contiguous", True


def measure(name: str, shape: tuple[int, ...], layout: str, *, compiled: bool, rounds: int) -> Cost:
    """Times one layer and what it is compared with, in turn."""
    cost = Cost(name, shape, layout, compiled)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    if layout == "channels-last":
        x = x.to(memory_format=torch.channels_last)
    dy = torch.randn(shape, generator=generator).contiguous(
        memory_format=torch.channels_last if layout == "channels-last" else torch.contiguous_format
    )
    x.requires_grad_()
    layer = build(layers()[name], shape)
    builtin = TorchBatchNorm(shape[1])
    modules: dict[str, nn.Module] = {"layer": layer, "builtin": builtin}
    if not compiled:
        modules |= by_others(name, layer, x, cost)
    arms: dict[str, Pass] = {}
    for arm, module in modules.items():
        f = module if not compiled else compiled_builtin(shape, module) if arm == "builtin" else compiled_alone(module)
        step = forward_and_backward(f, x, dy, [p for p in module.parameters() if p.requires_grad])
        try:
            step()  # compiles, takes a reference batch
        except Exception as error:  # shown, so that the others are still measured
            lines = str(error).strip().splitlines() or [""]
            cost.problems[arm] = f"{type(error).__name__}: {lines[0][:160]}"
        else:
            arms[arm] = step
    if "layer" not in arms:
        return cost
    if not compiled:
        cost.saved = bytes_saved(layer, x)
        cost.builtin_saved = bytes_saved(builtin, x) if "builtin" in arms else 0
    arms["clone"] = x.detach().clone
    times = in_turn(arms, rounds)
    ratios = {arm: median(a / b for a, b in zip(times["layer"], found, strict=True)) for arm, found in times.items()}
    cost.milliseconds = median(times["layer"])
    cost.builtin, cost.clones = ratios.get("builtin", float("nan")), ratios["clone"]
    cost.oracles = {arm: ratio for arm, ratio in ratios.items() if arm not in ("layer", "builtin", "clone")}
    return cost


def build(layer: type[Norm], shape: tuple[int, ...]) -> Norm:
    """For a tensor of this shape: (N, C, *), or a weight (C, I, *)."""
    return layer(shape[0] if layer.facts.acts_on == "weight" else shape[1])


def by_others(name: str, layer: Norm, x: Tensor, cost: Cost) -> dict[str, nn.Module]:
    """The implementations by others that compute the same on x in training."""
    layout = {2: "NC", 3: "NCL", 4: "NCHW"}[x.dim()]
    found = {}
    oracles: dict[str, Oracle] = dict(REFERENCES[name].oracles) if name in REFERENCES else {}
    for oracle_name, oracle in oracles.items():
        if layout in oracle.layouts and oracle.trains and oracle.timed:
            try:
                found[oracle_name] = oracle.build(layer, x).to(x.dtype).train()
            except Exception as error:  # not installed, or not in float32: shown
                cost.problems[oracle_name] = f"{type(error).__name__}: {error}"[:160]
    return found


def forward_and_backward(f: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, parameters: list[Any]) -> Pass:
    """A step of training, without the loss."""
    return lambda: torch.autograd.grad(f(x), [x, *parameters], dy, allow_unused=True)


_number = count()


def compiled_alone(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module compiled, as a function with code of its own.

    The compiler keeps its graphs with the code of a function, a few for each; all layers share `Norm.forward`.
    """

    def forward(x: Tensor) -> Tensor:
        return module(x)  # type: ignore[no-any-return]

    code = forward.__code__.replace(co_name=f"forward_{next(_number)}")
    own = FunctionType(code, globals(), closure=forward.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


_builtins: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}


def compiled_builtin(shape: tuple[int, ...], module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The compiled built-in for tensors of this shape: the same one beside every layer."""
    if shape not in _builtins:
        _builtins[shape] = compiled_alone(module)
    return _builtins[shape]


def in_turn(arms: dict[str, Pass], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each arm in each round: A B C, A B C ..."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    # Tiny passes are repeated, so that the clock and a stray interruption do not count.
    repeats = {}
    for arm, step in arms.items():
        start = time.perf_counter()
        for _ in range(WARMUP):
            step()
        repeats[arm] = max(1, int(0.005 * WARMUP / max(time.perf_counter() - start, 1e-7)))
    for _ in range(rounds):
        for arm, step in arms.items():
            start = time.perf_counter()
            for _ in range(repeats[arm]):
                step()
            times[arm].append(1e3 * (time.perf_counter() - start) / repeats[arm])
    return times


def bytes_saved(module: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass keeps for the backward pass; see the top of this file."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = module(x)
    waiting, seen = [y.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for tensor in tensors_in(list(getattr(node, "__dict__", {}).values())):
            note(tensor)
            waiting.append(tensor.grad_fn)
    return sum(storages.values())


def tensors_in(value: object) -> Iterator[Tensor]:
    """Those in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def without_nan(value: Any) -> Any:
    """For JSON, which has no NaN; ratios to three digits after the point."""
    if isinstance(value, float):
        return None if value != value else round(value, 3)
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return value


def number(value: float, digits: int = 2) -> str:
    """For a cell of a table."""
    return "-" if value != value else f"{value:.{digits}f}"


def table_of(costs: list[Cost]) -> Table:
    """A row per layer, shape and layout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("", no_wrap=True)
    for title in ("ms", "/ built-in", "/ clone", "saved MB", "/ built-in"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("/ the same by others")
    for cost in costs:
        table.add_row(
            cost.layer,
            "x".join(map(str, cost.shape)),
            "compiled" if cost.compiled else cost.layout.replace("contiguous", ""),
            number(cost.milliseconds, 3 if cost.milliseconds < 1 else 1),
            number(cost.builtin),
            number(cost.clones, 1),
            *(("", "") if cost.compiled else (f"{cost.saved / 1e6:.2f}", number(saved_ratio(cost)))),
            ", ".join(f"{name} {number(ratio)}" for name, ratio in cost.oracles.items()),
        )
    return table


def table_of_marks(costs: list[Cost], *, full: bool) -> Table:
    """Each mark, whether it is met, and by which layers it is not. A ratio counts with two digits after the point."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for title in ("mark", "at most", "worst", "", "missed by"):
        table.add_column(title, no_wrap=title != "missed by")
    for mark in MARKS:
        found = [(cost, mark.number(cost)) for cost in costs if mark.about(cost)]
        found = [(cost, ratio) for cost, ratio in found if ratio == ratio]
        if not found:
            table.add_row(mark.says, f"{mark.most}", "", "not measured", "")
            continue
        missed = sorted(((r, c) for c, r in found if round(r, 2) > mark.most), key=lambda pair: -pair[0])
        by = [f"{c.layer} {'x'.join(map(str, c.shape))} {place(c)}{r:.2f}" for r, c in missed]
        verdict = f"missed, {len(missed)} of {len(found)}" if missed else f"met, {len(found)}"
        table.add_row(mark.says, f"{mark.most}", number(max(r for _, r in found)), verdict, "; ".join(by))
    if not full:
        table.caption = "The marks are for pages kept."
    return table


def place(cost: Cost) -> str:
    """What tells two costs of one layer and shape apart."""
    return "compiled " if cost.compiled else "channels-last " if cost.layout == "channels-last" else ""


if __name__ == "__main__":
    main()
