"""Config files, read as data: YAML of a bounded size, no duplicate keys, string keys only."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from normzoo.errors import InputError
from normzoo.runs.allowed import CODE, FLAG, allowed

# Far above any real config, and far below what costs a second.
LARGEST = 2**18  # bytes
DEEPEST = 50  # levels
MOST_DIGITS = 100
MOST = 20_000  # values, counting those that aliases repeat

ADVICE = "normzoo fit --print_config prints a whole config"

# An address that fsspec would fetch, such as file:///x or simplecache::http://x.
ADDRESS = re.compile(r"[A-Za-z][\w+.-]*(::|://)\S+")
# Where addresses are meant: trackers of experiments and rendezvous of ranks.
ADDRESSES = re.compile(r"(.*_)?(uri|url|host|init_method|entity|workspace)")

FORMS: dict[str, tuple[type, str]] = {
    "class_path": (str, "the path of one class, such as torch.nn.ReLU"),
    "init_args": (dict, "a mapping from names of arguments to their values"),
    "dict_kwargs": (dict, "a mapping from names of arguments to their values"),
}

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
parse_yaml = jsonargparse.get_loader("yaml")

# The files that this command has read, and their text.
read: dict[str, str] = {}

granted: set[str] = set()  # the packages that any command of this process allowed


def read_text(file: Path) -> str:
    """The text of a config file.

    Raises:
        InputError: it is not a regular file, too large, or not text.
    """
    try:
        if file.exists() and not file.is_file():
            what = "a folder" if file.is_dir() else "a pipe or a device"
            raise InputError(f"{file}: a config is a file, and this is not a file but {what}; {ADVICE}.")
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{file}: a config file has at most {LARGEST // 1024} KiB, and this has more; {ADVICE}.")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{file}: this config file does not exist; check the path after -c.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: a config file is text in YAML, and this is not UTF-8; {ADVICE}.") from error
    except OSError as error:
        raise InputError(f"{file}: this config file cannot be read ({error.strerror}); check its path.") from error


def read_values(file: Path, shown: str) -> Any:
    """The content of a config file.

    Args:
        file: the file.
        shown: its path as the user gave it.

    Raises:
        InputError: it is not valid YAML, or holds what no config may hold.
    """
    text = read_text(file)
    try:
        values = load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
        raise InputError(
            f"{shown}: a config file is text in YAML, and this is not ({line}{reason}); {ADVICE}."
        ) from error
    require_settings(values, shown)
    read[shown] = text
    return values


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a config file.

    Raises:
        InputError: it does not hold settings, or what no config may hold.
    """
    settings = read_values(file, str(file))
    if not isinstance(settings, dict):
        found = repr(settings)[:80] if settings else "nothing"
        raise InputError(f"{file}: a config file holds settings, such as 'experiment: mine', not {found}; {ADVICE}.")
    if "allow" in settings:
        raise InputError(f"{file}: a file cannot allow what it names itself; give {FLAG} on the command line.")
    return settings


def require_settings(values: Any, shown: str, place: str = "") -> None:
    """Raises `InputError` if a class or its arguments have the wrong form, or a value is a remote address."""
    if isinstance(values, str) and ADDRESS.match(values) and not ADDRESSES.fullmatch(place.rpartition(".")[2]):
        raise InputError(f"{shown}: {place}={values!r} is a remote address; give the path of a local file or folder.")
    for key, value in enumerate(values) if isinstance(values, list) else ():
        require_settings(value, shown, f"{place}[{key}]")
    for key, value in values.items() if isinstance(values, dict) else ():
        name = f"{place}.{key}".lstrip(".")
        if key in FORMS:
            kind, what = FORMS[key]
            if not isinstance(value, kind):
                raise InputError(f"{shown}: {name} is {what}, not {repr(value)[:80]}.")
        elif close := get_close_matches(key, FORMS, n=1, cutoff=0.8):
            raise InputError(f"{shown}: {key!r} in {place or 'the file'} is unknown. Did you mean {close[0]}?")
        require_settings(value, shown, name)


def load(text: str) -> Any:
    """Reads YAML, as the parser does.

    Raises:
        YAMLError: it is not valid, too large or nested too deeply, or a key is duplicate or not a string.
    """
    try:
        require_bounds(yaml.compose(text, Loader=Loader), {})
        return parse_yaml(text)
    except (ValueError, OverflowError, RecursionError) as error:  # a date or number that Python cannot hold
        raise yaml.YAMLError(str(error)) from error


def require_bounds(node: Any, sizes: dict[int, int], depth: int = 0) -> int:
    """The number of values below a node, those that aliases repeat included."""
    if id(node) in sizes or node is None:
        return sizes.get(id(node), 0)
    if depth > DEEPEST:
        raise fault(node, f"it is nested deeper than {DEEPEST} levels, or an alias contains itself")
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if node.tag == "tag:yaml.org,2002:int":
        require_number(node)
    if isinstance(node, yaml.MappingNode):
        require_keys(node)
        children = [part for pair in node.value for part in pair]
    size = 1 + sum(require_bounds(child, sizes, depth + 1) for child in children)
    if size > MOST:
        raise fault(node, f"it holds more than {MOST} values")
    sizes[id(node)] = size
    return size


def require_number(node: yaml.ScalarNode) -> None:
    """Raises `YAMLError` for an integer that YAML 1.1 reads as another one, such as 010, or that is too long."""
    if re.match(r"[-+]?0[0-9_]|.*:", node.value):
        raise fault(node, f"YAML reads {node.value} in another base; write the number, or '{node.value}' for text")
    if len(node.value) > MOST_DIGITS:
        raise fault(node, f"a number of {len(node.value)} digits is too long for any setting")


def require_keys(mapping: yaml.MappingNode) -> None:
    """Raises `YAMLError` for a key that is duplicate, not a string, or reserved by the parser."""
    seen: set[str] = set()
    for key, _ in mapping.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            raise fault(key, f"a key is a string, and YAML reads {str(key.value)[:80]!r} as something else; quote it")
        if key.value in seen:
            raise fault(key, f"duplicate key {key.value!r}")
        if key.value.startswith("__"):
            raise fault(key, f"the key {key.value!r} is reserved by the parser")
        seen.add(key.value)


def fault(node: Any, problem: str) -> yaml.MarkedYAMLError:
    """An error at the place of a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def guard() -> None:
    """Makes the parser read every file and value within these bounds, and import from allowed packages only."""
    read.clear()
    packages = allowed()
    jsonargparse.set_loader("yaml", load, (yaml.YAMLError,))
    # No setting: the parser reads files that a flag or a file names through this method, whatever their size and kind.
    vars(jsonargparse)["Path"].read_text = guarded_text  # the name is not declared
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning turns it on: a file could name addresses to fetch
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *CODE, *sorted(granted - packages)],
        import_path_allowlist=sorted(packages),
    )
    granted.update(packages)


def guarded_text(path: Any) -> str:
    """The text of a file for the parser, which passes a path of its own kind."""
    if str(path) == "-":
        raise InputError(f"'-' is not a file: save the config in a file, and give its path; {ADVICE}.")
    read_values(Path(path.absolute), str(path))
    return read[str(path)]
