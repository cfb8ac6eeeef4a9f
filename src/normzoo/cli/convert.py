"""`normzoo convert`: writes a checkpoint whose network has another normalization layer."""

import ast
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from normzoo.cli.commands import ArgumentParser, add_checkpoint, require_new
from normzoo.cli.export import TOLERANCE, example_of, network_of, outputs
from normzoo.errors import InputError

REMEDY = "load the task in Python by normzoo.runs.load_task, and call normzoo.surgery.replace."


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo convert`."""
    parser = ArgumentParser(
        prog="normzoo convert",
        allow_abbrev=False,
        description="Write a checkpoint of the same network with another normalization layer, for 'normzoo test', "
        "'normzoo export' and normzoo.runs.load_task; it holds weights only. The network takes its layer by an "
        "argument 'norm'.",
        epilog="example: normzoo convert lightning_logs/digits_mlp/000 --rules 'BatchNorm=GroupNorm(num_groups=4)' "
        "--match=output -o grouped.ckpt",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--rules",
        nargs="+",
        required=True,
        metavar="OLD=NEW",
        help="a class of the network, * for any characters, and a layer: GroupNorm, 'GroupNorm(num_groups=4)'",
    )
    parser.add_argument(
        "--match",
        choices=("nothing", "affine", "output"),
        default="affine",
        help="what the new layers keep: nothing; weight, bias and statistics; or their output on the training data, as "
        "far as weight and bias can",
    )
    given = parser.parse_args(arguments)
    require_new(given.output)
    rules = dict(map(parsed, given.rules))

    import torch  # slow to import, as all of these

    from normzoo.runs import checkpoints
    from normzoo.runs.atomic import written_whole

    file = checkpoints.find_checkpoint(given.path, Path(given.runs), given.experiment)
    allow = [name for name in given.allow.split(",") if name]
    checkpoint, report = converted(file, rules, given.match, allow)
    with written_whole(Path(given.output)) as out:
        torch.save(checkpoint, out)
    print(report)
    print(f"{'converted':12} {given.output}")


def parsed(rule: str) -> tuple[str, dict[str, Any]]:
    """A pattern of classes, and the class path and arguments of the new layer, from `OLD=NEW(argument=value)`."""
    old, _, new = rule.partition("=")
    try:
        node = ast.parse(new, mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = ast.unparse(call.func)
        values = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        if not old or call.args or not name.replace(".", "").isidentifier():
            raise ValueError
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"--rules={rule!r}: a rule is OLD=NEW, as in BatchNorm=GroupNorm or 'BatchNorm=GroupNorm(num_groups=4)'."
        ) from error
    return old, {"class_path": name if "." in name else f"normzoo.norms.{name}", "init_args": values}


def converted(
    file: Path, rules: Mapping[str, dict[str, Any]], match: str, allow: Sequence[str]
) -> tuple[dict[str, Any], Any]:
    """A checkpoint with other norms, in its configuration and in its state, and the report of `replace`.

    Args:
        file: the checkpoint.
        rules: pattern of class names -> class path and arguments of the new norm.
        match: as of `replace`.
        allow: packages that the checkpoint may name.

    Raises:
        InputError: the network does not take its norm as an argument, or a rule does not fit.
    """
    from lightning.pytorch import LightningDataModule

    from normzoo.runs import checkpoints, load_task
    from normzoo.runs.loaded_task import build
    from normzoo.surgery import replace

    task = load_task(file, allow=allow)
    checkpoint = checkpoints.load_checkpoint(file)
    model = checkpoints.saved_model(checkpoint, file) or {}
    unused = [rule for rule in rules if not any(rule_for(place, [rule]) for place in norms_in(model))]
    if unused:
        found = ", ".join(sorted({name_of(place) for place in norms_in(model)}))
        raise InputError(
            f"{unused[0]!r} matches no norm that {str(file)!r} names in its configuration ("
            + (f"it names {found}" if found else "its network takes no argument 'norm'")
            + f"): {REMEDY}"
        )
    new_model = with_norms(model, rules)
    data = None
    if match == "output":
        if not (saved := checkpoints.saved_data(checkpoint, file)):
            raise InputError(f"{str(file)!r} does not say which data it was trained on, as --match=output needs.")
        data = build(saved, str(file), allow, LightningDataModule)
    pairs = zip(norms_in(model), norms_in(new_model), strict=True)
    factories = {name_of(old): partial(class_of(new["norm"]), **new["norm"]["init_args"]) for old, new in pairs}
    report = replace(task, factories, match=match, data=data)  # type: ignore[arg-type] # argparse has checked it
    new_task = build(new_model, str(file), allow)
    new_task.configure_model()
    fit_state(task, new_task, str(file), example_of(task, model))
    record = dict(checkpoint.get("normzoo") or {})
    record |= {"config": with_norms(record["config"], rules), "metrics": {}} if "config" in record else {}
    kept = ("epoch", "global_step", "pytorch-lightning_version")
    new = {key: checkpoint[key] for key in kept if key in checkpoint} | {
        "state_dict": new_task.state_dict(),
        "normzoo": record,
    }
    if "hyper_parameters" in checkpoint:
        new |= {"hyper_parameters": with_norms(checkpoint["hyper_parameters"], rules)}
    return new, report


def norms_in(settings: Any) -> Iterator[dict[str, Any]]:
    """The settings that have a `norm` with a class path, wherever they are."""
    if isinstance(settings, Mapping):
        if isinstance(settings.get("norm"), Mapping) and "class_path" in settings["norm"]:
            yield settings  # type: ignore[misc] # a dict
        for inner in settings.values():
            yield from norms_in(inner)


def name_of(place: Mapping[str, Any]) -> str:
    """The name of the class of a norm in settings."""
    return str(place["norm"]["class_path"]).rpartition(".")[2]


def rule_for(place: Mapping[str, Any], rules: Iterable[str]) -> str | None:
    """The first pattern that fits the class of a norm, by its name or with its package."""
    names = name_of(place), str(place["norm"]["class_path"])
    return next((old for old in rules if any(fnmatchcase(name, old) for name in names)), None)


def with_norms(settings: Any, rules: Mapping[str, dict[str, Any]]) -> Any:
    """A copy of settings with the new norms, which keep the arguments of the old ones that they have, too."""
    new = copy.deepcopy(settings)
    for place in norms_in(new):
        if old := rule_for(place, rules):
            rule = rules[old]
            takes = inspect.signature(class_of(rule)).parameters
            kept = {k: v for k, v in (place["norm"].get("init_args") or {}).items() if k in takes}
            place["norm"] = {"class_path": rule["class_path"], "init_args": {**kept, **rule["init_args"]}}
    return new


def class_of(norm: Mapping[str, Any]) -> Any:
    """The class of a norm that the user has named."""
    from importlib import import_module

    from torch import nn

    module, _, name = norm["class_path"].rpartition(".")
    try:
        found = getattr(import_module(module), name)
        if not issubclass(found, nn.Module):
            raise TypeError
        return found
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(
            f"--rules: there is no layer {norm['class_path']!r}: 'normzoo norms' lists those of the zoo; your own "
            f"goes by its dotted path."
        ) from error


def fit_state(task: Any, new: Any, file: str, x: Any) -> None:
    """Loads the state of a task whose norms were replaced into one that was built with the new norms.

    A network builds its layers without the bias that a norm cancels: one that is missing is 0, one too many moves the
    running mean of the norm behind it. Both are compared on an example x, if there is one.

    Raises:
        InputError: all else differs.
    """
    import torch

    from normzoo.models import Block
    from normzoo.surgery.fold import largest_change

    state, wanted = task.state_dict(), new.state_dict()
    for name, block in new.named_modules():
        if not isinstance(block, Block):
            continue
        bias, mean = f"{name}.layer.bias", f"{name}.norm.running_mean"
        if bias in wanted and bias not in state:
            state[bias] = torch.zeros_like(wanted[bias])
        elif bias in state and bias not in wanted and mean in state:
            state[mean] = state[mean] - state.pop(bias)
    if different := sorted(key for key in {*state, *wanted} if shape_of(state, key) != shape_of(wanted, key)):
        found = ", ".join(different[:3])
        raise InputError(f"the network of {file!r} is built differently with the new norm ({found}): {REMEDY}")
    new.load_state_dict(state)
    if x is None:
        return
    with torch.no_grad():
        change = largest_change(*(outputs(network_of(one).eval()(x)) for one in (task, new)))
    if not change <= TOLERANCE:
        raise InputError(
            f"the network of {file!r} computes something else when it is built with the new norm: {REMEDY}"
        )


def shape_of(state: Mapping[str, Any], key: str) -> Any:
    """The shape of an entry of a state, None without one."""
    return getattr(state.get(key), "shape", None)
