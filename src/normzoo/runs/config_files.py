"""Config files, read as data: text in YAML of a bounded size, whose every key stands once and is a word."""

import argparse
import inspect
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from normzoo.errors import InputError
from normzoo.runs.allowed import CODE, FLAG, allowed, check_class_paths, resolve

# Far above any real config, and far below what costs a second.
LARGEST = 2**18  # bytes
DEEPEST = 50  # levels
MOST_DEVICES = 4096  # each costs memory before the first is used
MOST = 20_000  # values, those that aliases repeat counted again

WHOLE = "normzoo fit --print_config prints a whole one"

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
load_yaml = jsonargparse.get_loader("yaml")


# The files that this command has read, and their text.
read: dict[str, str] = {}

granted: set[str] = set()  # the packages that any command of this process allowed


def read_text(file: Path) -> str:
    """The text of a config file.

    Raises:
        InputError: it is no regular file, too large, or not text.
    """
    try:
        kind = file.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
            raise InputError(f"{file}: a config is a file, and this is not a file but {what}; {WHOLE}.")
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        missing = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason})"
        raise InputError(f"{file}: this config file {missing}; check what -c names.") from error
    if len(content) > LARGEST:
        raise InputError(f"{file}: a config file has at most {LARGEST // 1024} KiB, and this has more; {WHOLE}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unfit(file, f"byte {error.start} is not UTF-8: save it in that encoding") from error
    if found := re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text):
        line = text.count("\n", 0, found.start()) + 1
        raise unfit(file, f"line {line} holds the character {found[0]!r}, which no text does")
    return text


def unfit(file: Path, reason: str) -> InputError:
    """What to say of a file that is not YAML."""
    return InputError(f"{file}: a config file is text in YAML, and this is not ({reason}); {WHOLE}.")


def read_values(file: Path, shown: str) -> Any:
    """What stands in a config file.

    Args:
        file: where it is.
        shown: how the user calls it.

    Raises:
        InputError: it could not be read the same way by everybody.
    """
    text = read_text(file)
    try:
        require_bounds(text)
        require_clarity(text)
        values = load_yaml(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise unfit(file, told(error)) from error
    read[shown] = text
    return values


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a config file.

    Raises:
        InputError: it holds no settings, or could not be read the same way by everybody.
    """
    settings = read_values(file, str(file))
    if not isinstance(settings, dict):
        found = "nothing" if settings is None or settings == "" else brief(settings)
        raise InputError(f"{file}: a config file holds settings, such as 'experiment: mine', not {found}; {WHOLE}.")
    require_form(settings, str(file))
    return settings


def require_form(values: Any, shown: str) -> None:
    """Raises `InputError` where a class and its arguments are not written as such, or a file speaks as the parser does.

    Args:
        values: what stands in a file.
        shown: how the user calls it.
    """
    if isinstance(values, dict) and "allow" in values:
        raise InputError(f"{shown}: a file cannot allow what it names itself; give {FLAG} on the command line.")
    pending: list[tuple[str, Any]] = [("", values)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            for one, other in (("class_path", "init_args"), ("init_args", "class_path")):
                if one not in value and (other in value or len(value) == 1):
                    for key in get_close_matches(one, [str(key) for key in value if key != other], n=1, cutoff=0.8):
                        raise InputError(f"{shown}: {key!r} in {place or 'it'} is unknown. Did you mean {one}?")
            for key, child in value.items():
                name = f"{place}.{key}" if place else str(key)
                if key == "class_path" and not isinstance(child, str):
                    wrong = "the path of one class, as torch.nn.ReLU"
                elif key in ("init_args", "dict_kwargs") and not isinstance(child, dict):
                    wrong = "a mapping from names of arguments to their values"
                else:
                    wrong = ""
                if wrong:
                    raise InputError(f"{shown}: {name} is {wrong}, not {brief(child)}.")
                if str(key).startswith("__"):
                    raise InputError(f"{shown}: {name} is no setting but the parser's own word; leave it out.")
                pending.append((name, child))
        elif isinstance(value, list):
            pending += [(f"{place}[{index}]", child) for index, child in enumerate(value)]


def require_plausible(settings: Any, trainer: type) -> None:
    """Raises `InputError` where the parser let pass what cannot be meant: nothing at all, or too much to hold.

    Args:
        settings: of a command, as they were parsed.
        trainer: the class that takes what is under `trainer`.
    """
    if not isinstance(settings.trainer, argparse.Namespace):
        raise InputError(f"trainer={brief(settings.trainer)}: it holds options of the Trainer, as max_epochs: 10.")
    for name in ("devices", "num_nodes"):
        number = str(settings.trainer.get(name))
        if number.isdecimal() and int(number) > MOST_DEVICES:
            raise InputError(f"trainer.{name}={number}: it is a number of at most {MOST_DEVICES}; try 1.")
    for name in ("experiment", "runs", "keep_pages", "test_after_fit", "seed_everything"):
        if name in settings and settings[name] is None:
            raise InputError(f"{name}: nothing stands there; give a value, or leave it out.")
    require_values(trainer, settings.trainer, "trainer")
    require_values(None, argparse.Namespace(model=settings.get("model"), data=settings.get("data")), "")


def require_values(builder: Any, arguments: Any, key: str) -> None:
    """Raises `InputError` where nothing is given to an argument that takes no None, which the parser lets pass.

    Args:
        builder: the class or function that takes the arguments; None for what is not the argument of any.
        arguments: a mapping from their names to values, and classes with arguments of their own among these.
        key: where they stand.
    """
    try:
        parameters = dict(inspect.signature(builder).parameters)
    except (TypeError, ValueError):
        parameters = {}
    for name, value in vars(arguments).items():
        parameter = parameters.get(name)
        if value is None and parameter is not None and parameter.default not in (None, parameter.empty):
            hint = str(parameter.annotation)
            if parameter.annotation is not parameter.empty and not re.search("None|Optional|Any", hint):
                raise InputError(
                    f"{key}.{name}: nothing stands there; the default is {parameter.default!r}, or leave it out."
                )
        for index, part in enumerate(value if isinstance(value, list) else [value]):
            path = getattr(part, "class_path", None)
            given = getattr(part, "init_args", None)
            if isinstance(path, str) and given is not None:
                where = f"{key}.{name}".lstrip(".")
                require_values(resolve(path), given, where if part is value else f"{where}[{index}]")


def brief(value: Any) -> str:
    """A value for a message."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-10:]}"


def told(error: Exception) -> str:
    """What is wrong and in which line, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        return f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)
    return " ".join(str(error).split())[:200]


def load(text: str) -> Any:
    """What the parser makes of a value or of a file: YAML within bounds."""
    require_bounds(text)
    return load_yaml(text)


def require_bounds(text: str) -> None:
    """Raises `YAMLError` where text would grow beyond bounds; builds nothing itself."""
    sizes: dict[str, int] = {}  # of what has an anchor, with all that aliases in it repeat
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEEPEST:
                raise fault(event, f"it is nested deeper than {DEEPEST} levels")
            continue
        if isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if re.fullmatch(r"[-+]?[\d_]{100,}", event.value) and event.implicit[0]:
                raise fault(event, f"a number of {len(event.value)} digits is more than any setting takes")
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise fault(event, f"*{event.anchor} stands before the end of what it repeats")
            anchor, size = None, sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        else:
            continue
        if anchor:
            sizes[anchor] = size
        above, count = open_nodes[-1]
        if count + size > MOST:
            raise fault(event, f"it holds more than {MOST} values")
        open_nodes[-1] = (above, count + size)


def require_clarity(text: str) -> None:
    """Raises `YAMLError` where a file says something twice, or YAML would read another thing than stands there."""
    for node in nodes(yaml.compose(text, Loader=Loader)):
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode) and tag == "int" and re.match(r"[-+]?0[0-9_]|.*:", node.value):
            raise fault(node, f"YAML reads {node.value} as {octal(node.value)}; write that, or '{node.value}' for text")
        if not isinstance(node, yaml.MappingNode):
            continue
        keys: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise fault(
                    key, f"a key is a word, and YAML reads {name!r} as something else; every setting has a name"
                )
            if name in keys:
                raise fault(key, f"{name!r} stands here a second time, and only one of them can count")
            keys.add(name)


def octal(number: str) -> str:
    """What YAML 1.1 makes of a number that begins with 0, or has colons."""
    try:
        return str(yaml.safe_load(number))
    except ValueError:
        return "no number"


def nodes(root: Any) -> Iterator[Any]:
    """A node and all below it, each once."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            pending += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            pending += reversed(node.value)


def fault(where: Any, problem: str) -> yaml.MarkedYAMLError:
    """An error at the place of an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def guard() -> None:
    """Has the parser read every file, also those that a file or a flag names, and every value within these rules, and
    import from allowed packages only."""
    read.clear()
    jsonargparse.set_loader("yaml", load, (yaml.YAMLError,))
    vars(jsonargparse)["Path"].read_text = guarded_text
    packages = allowed()
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning's choice: a file could name addresses to fetch
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *CODE, *sorted(granted - packages)],
        import_path_allowlist=sorted(packages),
    )
    granted.update(packages)


@contextmanager
def limited_to(packages: Collection[str]) -> Iterator[None]:
    """Has parsers meanwhile import from some packages only."""
    settings = jsonargparse._common.parsing_settings
    before = dict(settings)
    jsonargparse.set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *CODE],
        import_path_allowlist=sorted(packages),
    )
    try:
        yield
    finally:
        settings.update(before)


def guarded_text(path: Any) -> str:
    """Reads a file for the parser, which has made a path of its own kind of what a flag or a file names."""
    if str(path) == "-":
        raise InputError(f"'-' names no file: save in one what you would pipe, and name that. {WHOLE}.")
    values = read_values(Path(path.absolute), str(path))
    require_form(values, str(path))
    check_class_paths(values, str(path), strings=False)
    return read[str(path)]
