"""Compares the configuration of a checkpoint's run with the one given now, and refuses changes nobody asked for."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from normzoo.errors import InputError

Differences = dict[str, tuple[Any, Any]]

# Settings that do not affect the training.
FREE = ("data.root", "data.download", "data.num_workers", "data.eval_batch_size", "model.compile")

# Settings that a resumed run cannot change -> why.
FIXED = {
    "seed_everything": "it determines the order of the images and all random numbers",
    "model": "the saved state belongs to its task",
    "model.optimizer": "the saved state belongs to its optimizer",
    "model.lr_scheduler": "the saved state belongs to its schedule",
}
# Further ones for a checkpoint from the middle of an epoch.
FIXED_WITHIN_EPOCH = dict.fromkeys(
    ("data", "data.batch_size", "data.val_size", "data.split_seed", "data.shuffle_seed"),
    "the checkpoint is from the middle of an epoch, whose images are in an order of their own",
)
# Arguments that the data module sets.
LINKED = ("model.net.input_shape", "model.net.num_classes", "model.num_classes")


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], parts: Collection[str]) -> Differences:
    """Key -> (value in the checkpoint, value asked for), where they differ.

    Keys are spelled like flags, without `init_args`. An argument that only one of the two has makes no difference;
    below a class that differs nothing more is compared.

    Args:
        saved: configuration of the run that wrote the checkpoint.
        asked: configuration now.
        parts: the keys of the configurations that are compared.
    """
    found: Differences = {}
    for part in parts:
        if saved.get(part) is None or asked.get(part) is None:
            continue
        old, new = dict(flatten(saved[part], part)), dict(flatten(asked[part], part))
        for key in old.keys() & new.keys():
            if old[key] != new[key] and key not in LINKED and key not in FREE:
                found[key] = (old[key], new[key])
    return {key: found[key] for key in sorted(found) if not any(key.startswith(f"{other}.") for other in found)}


def flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The settings in a configuration, each with its key; that of a class path is the key of the class."""
    if not isinstance(value, Mapping):
        yield key, [*value] if isinstance(value, tuple) else value
        return
    if "class_path" in value:
        yield key, value["class_path"]
        value = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    for name, inner in value.items():
        yield from flatten(inner, f"{key}.{name}")


def describe(found: Differences) -> str:
    """Differences, one on each line."""
    return "\n".join(
        f"  {key}: checkpoint has {short(old)}, asked for {short(new)}" for key, (old, new) in found.items()
    )


def short(value: Any) -> str:
    """A value in at most 100 characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def require_announced(
    found: Differences, changes: Collection[str], known: Collection[str], file: str, within_epoch: bool = False
) -> None:
    """Raises `InputError` unless a resumed run may have all differences and `--change` announces each.

    Args:
        found: by `differences`.
        changes: the keys that `--change` names; a key includes all below it.
        known: all keys that could be named.
        file: the checkpoint, for the message.
        within_epoch: whether it is from the middle of an epoch.
    """

    def is_announced(key: str, changes: Collection[str] = changes) -> bool:
        return any(f"{key}.".startswith(f"{change}.") for change in changes)

    for change in changes:
        if not any(is_announced(key, [change]) for key in known):
            raise InputError(
                f"change={change!r}: there is no setting of this name; give one such as model.optimizer.lr, or several "
                f"with commas."
            )
    reasons = FIXED | FIXED_WITHIN_EPOCH if within_epoch else FIXED
    refused = {key: pair for key, pair in found.items() if key in reasons or not is_announced(key)}
    if not refused:
        return
    remedies = ["A resumed run keeps its settings: leave these flags out, or give all settings by -c RUN/config.yaml."]
    silent = [key for key in refused if key not in reasons]
    if silent:
        remedies.append(f"To change them from here on, add --change={','.join([*changes, *silent])}")
    if any(f"{key}.".startswith("model.net.") for key in silent):
        remedies.append("A network can change only if all its tensors keep their shapes; else start another run.")
    remedies += [
        f"{key} cannot change within a run: {reasons[key]}; start one without --ckpt_path."
        for key in refused
        if key in reasons
    ]
    raise InputError("\n".join([f"ckpt_path={file!r} was trained with other settings:", describe(refused), *remedies]))
