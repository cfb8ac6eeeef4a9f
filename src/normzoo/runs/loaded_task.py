"""Builds the task that a checkpoint was saved from, without importing anything that the caller does not trust."""

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import isroutine
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from normzoo.errors import InputError
from normzoo.runs.allowed import CODE, PACKAGES, VARIABLE, allowed, callables, check_callables
from normzoo.runs.archive import load_checkpoint, walk
from normzoo.runs.checkpoints import explain_mismatch, saved_model


def load_task(
    file: str | Path, *, allow: Collection[str] = (), map_location: str | torch.device = "cpu", **changes: Any
) -> LightningModule:
    """Builds the task in a checkpoint of the command line, with its weights.

        task = load_task("lightning_logs/digits_mlp/000-BatchNorm-0/checkpoints/best.ckpt")
        logits = task(images)

    The checkpoint may name classes of normzoo, torch, torchvision, torchmetrics and lightning, and modules, optimizers
    and schedules that the caller has imported. Unlike `LightningModule.load_from_checkpoint`, it cannot cause other
    imports or calls.

    Args:
        file: the checkpoint.
        allow: names of other packages that the checkpoint may import classes from.
        map_location: the device of the task.
        **changes: arguments of the task that replace the saved ones.

    Raises:
        InputError: the file is damaged or unsafe, does not say how to build its task, or names a class that is not
            allowed; the weights do not fit the task.
    """
    checkpoint = load_checkpoint(file)
    config = saved_model(checkpoint, Path(file))
    if config is None:
        raise InputError(
            f"{str(file)!r} does not say how to build its task, since it was trained in Python: build the task, and "
            f"give it load_checkpoint({str(file)!r})['state_dict'] by load_state_dict."
        )
    config["init_args"] |= changes
    task: LightningModule = build(config, str(file), allow)
    task.configure_model()
    task.on_load_checkpoint(checkpoint)
    with explain_mismatch(str(file), {}):
        task.load_state_dict(checkpoint["state_dict"], strict=task.strict_loading)
    return task.to(map_location)


def build(config: Mapping[str, Any], file: str, allow: Collection[str] = (), kind: type[Any] = LightningModule) -> Any:
    """Builds a task, or a data module, from its class path and arguments.

    Args:
        config: with `class_path` and `init_args`.
        file: where it is from, for messages.
        allow: packages that it may name beside the usual ones.
        kind: what it is.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    with import_only({*allowed(), *allow, *imported(config)}):
        try:
            parser.add_subclass_arguments(kind, "task", fail_untyped=False)
            settings = parser.parse_object({"task": dict(config)})
            of_packages = [one for one in callables(settings) if one[0].partition(".")[0] in PACKAGES]
            named = [found if isroutine(found) else {"class_path": path} for path, found in of_packages]
            check_callables(named, {file: str(config)})  # the user's own packages may name any function
            built = parser.instantiate_classes(settings).task
        except InputError:
            raise
        except (jsonargparse.ArgumentError, ValueError, RecursionError) as error:
            raise refusal(error, file) from error
    return built


def refusal(error: Exception, file: str) -> InputError:
    """The message for an error of the parser."""
    if denied := re.search(r"Importing '((\w+)[\w.]*)' is not allowed", str(error)):
        return InputError(
            f"{file!r} names {denied[1]!r}, which could run any code when it is imported or built. If you trust it, "
            f"import it first, or allow its package: load_task(..., allow=[{denied[2]!r}]), or {VARIABLE}={denied[2]} "
            f"in the environment; if not, do not use this checkpoint."
        )
    return InputError(f"the task in {file!r} cannot be built: {' '.join(str(error).split())[:300]}")


def imported(config: Mapping[str, Any]) -> Iterator[str]:
    """The paths in settings of the caller's own modules, optimizers and schedules that have been imported."""
    for _, value in walk(config):
        module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and issubclass(found, nn.Module | Optimizer | LRScheduler):
            paths = (value, f"{found.__module__}.{found.__qualname__}")
            yield from (
                path for path in paths if path.partition(".")[0] not in PACKAGES
            )  # these have rules of their own


@contextmanager
def import_only(paths: Collection[str]) -> Iterator[None]:
    """Makes jsonargparse import from some packages or classes only, and read no remote files.

    Args:
        paths: of packages and classes.
    """
    # Private names: jsonargparse can set its policy, for the whole process, but offers no way to restore it.
    settings, mode = jsonargparse._common.parsing_settings, jsonargparse._optionals._get_config_read_mode()
    before = dict(settings)
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *CODE],
        import_path_allowlist=sorted(paths),
    )
    try:
        yield
    finally:
        settings.clear()
        settings.update(before)
        jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled="s" in mode)
