"""In which settings runs differ, and how a table names them."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from normzoo.runs.contradictions import FREE, flatten

SEED, NORM, DATA = "seed_everything", "norm", "data"
# What does not change the training, or is the same by another name.
LEFT_OUT = (
    SEED, *FREE, "experiment", "runs", "ckpt_path", "change", "weights_only", "keep_pages", "monitors",
    "checkpoint_minutes", "checkpoint_steps", "test_after_fit", "trainer.logger", "trainer.default_root_dir",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing",
)  # fmt: skip
ZOO = "normzoo.norms"

Settings = dict[str, Any]


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings of a run by the names of their flags, without those that do not change the training."""
    every = (pair for part, value in config.items() for pair in flatten(value, str(part)))
    return {key: value for key, value in every if not any(f"{key}.".startswith(f"{one}.") for one in LEFT_OUT)}


def comparable(runs: Sequence[Settings], norms: Sequence[str]) -> tuple[list[str], list[Settings]]:
    """The settings in which runs differ, and those of each run.

    The norm is one of them, `norm`, with the arguments that are not the layer's defaults.

    >>> of = {"model.optimizer": "SGD", "model.optimizer.lr": 0.1}
    >>> comparable([of, {**of, "model.optimizer.lr": 1.0}], ["BatchNorm", "BatchNorm"])
    (['model.optimizer.lr'], [{'norm': 'BatchNorm', 'model.optimizer.lr': 0.1}, \
{'norm': 'BatchNorm', 'model.optimizer.lr': 1.0}])

    Args:
        runs: the settings of each, by `settings_of`.
        norms: the name of the norm of each, where its settings have none.
    """
    parts = [without_norm(run, norm) for run, norm in zip(runs, norms, strict=True)]
    classes, arguments, others = map(list, zip(*parts, strict=True)) if parts else ([], [], [])
    names, keys = norm_names(classes, arguments), axes(others)
    differ = [*([NORM] if len({*names}) > 1 else []), *keys]
    return differ, [
        {NORM: norm, **{key: run.get(key) for key in keys}} for norm, run in zip(names, others, strict=True)
    ]


def axes(runs: Sequence[Settings]) -> list[str]:
    """The keys of settings in which runs differ.

    A setting that some runs do not have makes no difference there. An argument that follows from a class that differs
    is left out: the momentum of one optimizer, but not its rate if it has several.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    found = [key for key in keys if len({frozen(run[key]) for run in runs if key in run}) > 1]
    return [key for key in found if not any(follows(key, other, runs) for other in found if is_below(key, other))]


def is_below(key: str, other: str) -> bool:
    """Whether a setting is an argument of the class that another one names."""
    return key != other and key.startswith(f"{other}.")


def follows(key: str, other: str, runs: Sequence[Settings]) -> bool:
    """Whether a setting has one value for each value of another one."""
    values: dict[str, set[str]] = {}
    for run in runs:
        if key in run:
            values.setdefault(frozen(run.get(other)), set()).add(frozen(run[key]))
    return all(len(several) == 1 for several in values.values())


def frozen(value: Any) -> str:
    """A value as text, the same for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


# The norm.


def without_norm(run: Settings, norm: str) -> tuple[str, Settings, Settings]:
    """The class of a run's norm, its arguments, and the other settings."""
    key = next((key for key in run if key.rpartition(".")[2] == NORM and isinstance(run[key], str)), None)
    if key is None:
        return norm, {}, run
    arguments = {one.removeprefix(f"{key}."): value for one, value in run.items() if is_below(one, key)}
    return run[key], arguments, {one: value for one, value in run.items() if one != key and not is_below(one, key)}


def norm_names(classes: Sequence[str], arguments: Sequence[Settings]) -> list[str]:
    """The norm of each run as `GroupNorm(num_groups=4)`."""
    names = []
    for norm, given in zip(classes, arguments, strict=True):
        same = [other for one, other in zip(classes, arguments, strict=True) if one == norm]
        telling = {key: value for key, value in given.items() if tells_apart(key, value, same, defaults(norm))}
        names.append(call(norm, telling))
    return names


def tells_apart(key: str, value: Any, runs: Sequence[Settings], usual: Settings) -> bool:
    """Whether an argument differs from the layer's default; where that is not known, between the runs with the norm."""
    if key in usual:
        return frozen(value) != frozen(usual[key])
    return len({frozen(run[key]) for run in runs if key in run}) > 1


def call(path: str, arguments: Mapping[str, Any]) -> str:
    """A class as `Name(argument=value)`."""
    given = ", ".join(f"{key}={shown(value)}" for key, value in arguments.items())
    name = path.rpartition(".")[2]
    return f"{name}({given})" if given else name


@cache
def defaults(path: str) -> Settings:
    """The defaults of a layer of the zoo, from its source: to import it takes as long as to import torch."""
    package, _, name = path.rpartition(".")
    if package != ZOO:
        return {}
    folder = Path(__file__).parents[1] / "norms"
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            file = folder.parent.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
            return dict(constants(ast.parse(file.read_text(encoding="utf-8")), name))
    return {}


def constants(module: ast.Module, name: str) -> Iterator[tuple[str, Any]]:
    """The arguments of a class whose defaults are constants, and these."""
    for layer in module.body:
        for node in layer.body if isinstance(layer, ast.ClassDef) and layer.name == name else ():
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                positional = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
                for argument, value in [*positional, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]:
                    if isinstance(value, ast.Constant):
                        yield argument.arg, value.value


# Names.


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ends of keys that differ.

    >>> short_names(["norm", "model.optimizer.lr", "data.batch_size"])
    {'norm': 'norm', 'model.optimizer.lr': 'lr', 'data.batch_size': 'batch_size'}
    """
    every = [end for key in keys for end in ends(key)]
    return {key: next((end for end in ends(key) if every.count(end) == 1), key) for key in keys}


def ends(key: str) -> list[str]:
    """The last part of a key, the last two, and so on."""
    parts = key.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]


def shown(value: Any) -> str:
    """A value in a name: a class without its module, a number with few digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value.rpartition(".")[2] if value.replace(".", "").isidentifier() else value
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping) and "class_path" in value:
        return call(str(value["class_path"]), value.get("init_args") or {})
    return frozen(value)
