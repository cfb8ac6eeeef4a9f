"""What a checkpoint says of its run, held against what is asked for now: refused, or changed on purpose, but seen."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from normzoo.errors import InputError

Differences = dict[str, tuple[Any, Any]]

# Where it is done and how fast, which leaves the training what it is.
FREE = ("data.root", "data.download", "data.num_workers", "data.eval_batch_size", "model.compile")

# What a run cannot change on its way -> why.
FIXED = {
    "seed_everything": "the order of the images and all random numbers are those of the run",
    "model": "a task's state is its own",
    "model.optimizer": "an optimizer's state is its own",
    "model.lr_scheduler": "a schedule's state is its own",
}
# The same for a checkpoint from the middle of an epoch.
FIXED_WITHIN_EPOCH = dict.fromkeys(
    ("data", "data.batch_size", "data.val_size", "data.split_seed", "data.shuffle_seed"),
    "the checkpoint is from the middle of an epoch, whose images it has begun in an order of their own",
)
# What the data set tells the network.
LINKED = ("input_shape", "num_classes")


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], parts: Collection[str]) -> Differences:
    """Key -> (what the checkpoint has, what is asked for), where they differ.

    A key is spelled as its flag is: without `init_args`. What one of the two does not know (an argument that is newer
    than the checkpoint) makes no difference; below a class that is another one, nothing more is compared.

    Args:
        saved: configuration of the run that wrote the checkpoint.
        asked: configuration now.
        parts: the keys of the configurations that are compared.
    """
    found: Differences = {}
    for part in parts:
        if saved.get(part) is None or asked.get(part) is None:
            continue
        old, new = dict(leaves(saved[part], part)), dict(leaves(asked[part], part))
        for key in old.keys() & new.keys():
            if old[key] != new[key] and key.rpartition(".")[2] not in LINKED and key not in FREE:
                found[key] = (old[key], new[key])
    above = [key for key in found if any(key.startswith(f"{other}.") for other in found)]
    return {key: found[key] for key in sorted(found) if key not in above}


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The settings in a configuration: a class's path stands under the key of the class."""
    if not isinstance(value, Mapping):
        yield key, [*value] if isinstance(value, tuple) else value
        return
    if "class_path" in value:
        yield key, value["class_path"]
        for arguments in (value.get("init_args"), value.get("dict_kwargs")):
            for name, inner in (arguments or {}).items():
                yield from leaves(inner, f"{key}.{name}")
    else:
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")


def listed(found: Differences) -> str:
    """Differences, one on each line."""
    return "\n".join(
        f"  {key}: checkpoint has {short(old)}, asked for {short(new)}" for key, (old, new) in found.items()
    )


def short(value: Any) -> str:
    """A value in one line of bearable length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def covers(change: str, key: str) -> bool:
    """Whether a change that is announced is of a key, or of all below which the key is."""
    return key == change or key.startswith(f"{change}.")


def granted(
    found: Differences, changes: Collection[str], known: Collection[str], file: str, within_epoch: bool = False
) -> Differences:
    """The differences, if each is one that a resumed run may have and that was announced.

    Args:
        found: by `differences`.
        changes: the keys that `--change` names.
        known: all keys that could be named.
        file: the checkpoint, for the message.
        within_epoch: whether it is from the middle of an epoch.

    Raises:
        InputError: it lists those that were not.
    """
    for change in changes:
        if not any(covers(change, key) for key in known):
            raise InputError(
                f"change={change!r}: there is no setting of this name to change; it is one such as model.optimizer.lr, "
                f"or several with commas between."
            )
    reasons = FIXED | FIXED_WITHIN_EPOCH if within_epoch else FIXED
    fixed = [key for key in found if key in reasons]
    silent = [key for key in found if key not in reasons and not any(covers(change, key) for change in changes)]
    if not fixed and not silent:
        return found
    refused = {key: found[key] for key in found if key in fixed or key in silent}
    ways = ["A resumed run goes on as it was: leave these flags out, or give all its settings by -c RUN/config.yaml."]
    if silent:
        ways.append(f"To change them from here on, add --change={','.join([*changes, *silent])}")
    ways += [f"{key} cannot change within a run: {reasons[key]}; start one without --ckpt_path." for key in fixed]
    raise InputError("\n".join([f"ckpt_path={file!r} was trained otherwise than asked:", listed(refused), *ways]))
