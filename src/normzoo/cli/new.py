"""The command `normzoo new`: writes the project in `template/` under the name of the user's."""

import keyword
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Sequence
from importlib.util import find_spec
from os.path import abspath, lexists
from pathlib import Path
from shutil import which
from typing import Any

from normzoo.cli.commands import ArgumentParser
from normzoo.errors import InputError

TEMPLATE = Path(__file__).parents[1] / "template"
NAME = "my_project"  # in the template


def main(arguments: Sequence[str]) -> None:
    """Runs `normzoo new`."""
    parser = ArgumentParser(
        prog="normzoo new",
        description="Start a project of your own: data, network, norm and task, each a short file to edit. They are "
        "plain Lightning; normzoo stays a library that you upgrade by pip.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder to create, called as the package shall be")
    parser.add_argument(
        "--into",
        action="store_true",
        help="add the project to a folder that exists, such as a repository; files that are there are not changed",
    )
    given = parser.parse_args(arguments)
    folder = Path(abspath(given.folder))
    name = name_in(folder) if given.into else folder.name
    require_name(name, folder)
    require_folder(given.folder, folder, given.into)

    files = project(name, flat=(folder / name).is_dir())
    missing = {path: text for path, text in files.items() if not is_there(path, folder)}
    write(folder, missing)
    print(listing(missing))
    for path in [path for path in files if path not in missing]:
        print(f"kept yours: {path}")
    print(to_add(files, missing, folder), end="")
    print("\n  ".join(["\nnext:", *next_commands(given.folder)]))


def name_in(folder: Path) -> str:
    """The package's name in a folder that exists: that of the project in pyproject.toml, else the folder's."""
    name = str(read_pyproject(folder).get("project", {}).get("name", folder.name))
    return re.sub(r"\W+", "_", name)


def read_pyproject(folder: Path) -> dict[str, Any]:
    """The settings in a folder's pyproject.toml, none if there is no file."""
    file = folder / "pyproject.toml"
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is no TOML: {error}; correct it first.") from error


def require_name(name: str, folder: Path) -> None:
    """Raises `InputError` for a name that a package outside of the folder has, or that no package can have."""
    if not re.fullmatch(r"[A-Za-z](\w*[A-Za-z0-9])?", name, re.ASCII) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_0123456789").lower()
        hint = f", such as {better}" if better and not keyword.iskeyword(better) else ""
        raise InputError(f"{name!r} cannot be the name of a package: use letters, digits and _, no keyword{hint}.")
    found = find_spec(name)
    place = found and found.origin
    if name in sys.stdlib_module_names or (place and not Path(place).resolve().is_relative_to(folder.resolve())):
        raise InputError(f"{name!r} is the name of a module that is there already ({place}): choose another.")


def require_folder(given: str, folder: Path, into: bool) -> None:
    """Raises `InputError` for a folder that the project cannot be written to."""
    if into and not folder.is_dir():
        raise InputError(f"{given} is no folder: --into adds to one that exists; without it, a new one is created.")
    if not into and lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{given} is there already and is not empty: --into adds to it, and changes no file in it.")


def project(name: str, *, flat: bool = False) -> dict[str, str]:
    """Path -> text of each file of the project; `flat` without the folder src."""
    files = {}
    for file in sorted(TEMPLATE.rglob("*")):
        path = str(file.relative_to(TEMPLATE))
        if file.is_file() and "cache" not in path:  # of Python, ruff and others
            files[path] = file.read_text(encoding="utf-8")
    package = f"src/{NAME}"

    def rename(text: str) -> str:
        return (text.replace(package, NAME) if flat else text).replace(NAME, name)

    return {rename(path): rename(text) for path, text in files.items()}


def is_there(path: str, folder: Path) -> bool:
    """Whether the folder has this file, or for pyproject.toml one with the same purpose."""
    others = ("setup.py", "setup.cfg") if path == "pyproject.toml" else ()
    return any(lexists(folder / one) for one in (path, *others))


def write(folder: Path, files: dict[str, str]) -> None:
    """Writes files and the folders that they need, or nothing: where one cannot be written, removes the others."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            file = folder / path
            for parent in [one for one in reversed(file.parents) if not one.exists()]:
                parent.mkdir()
                made.append(parent)
            with file.open("x", encoding="utf-8") as stream:
                made.append(file)
                stream.write(text)
            if text.startswith("#!"):
                mode = file.stat().st_mode
                file.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    except BaseException as error:
        for one in reversed(made):
            one.rmdir() if one.is_dir() else one.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{error.filename or file} cannot be written ({error.strerror}): no file was.") from error
        raise


def next_commands(folder: str) -> list[str]:
    """What the user types next: the scripts call the programs of the active environment."""
    activate = [] if which("normzoo") else [f"source {shlex.quote(sys.prefix)}/bin/activate"]
    change = [] if abspath(folder) == os.getcwd() else [f"cd {shlex.quote(folder)}"]
    return [*activate, *change, "scripts/train", "scripts/test"]


def listing(files: dict[str, str]) -> str:
    """The files with their numbers of lines, and both summed up."""
    lines = {path: len(text.splitlines()) for path, text in files.items()}
    rows = [f"{count:5}  {path}" for path, count in lines.items()]
    return "\n".join([*rows, f"{sum(lines.values()):5}  lines in {len(files)} files, all yours to edit"])


def to_add(files: dict[str, str], missing: dict[str, str], folder: Path) -> str:
    """What the user adds by hand to the files that were kept, as text; nothing if they have it."""
    said = ""
    if "pyproject.toml" not in missing:
        wanted = tomllib.loads(files["pyproject.toml"])["project"]
        there = read_pyproject(folder).get("project", {})
        [normzoo] = wanted["dependencies"]
        [(name, package)] = wanted["entry-points"]["normzoo.packages"].items()
        if not any(one.startswith("normzoo") for one in there.get("dependencies", [])):
            said += f'\nadd to [project] in pyproject.toml:\n  dependencies = ["{normzoo}"]\n'
        if name not in there.get("entry-points", {}).get("normzoo.packages", {}):
            said += f'\nadd to pyproject.toml:\n  [project.entry-points."normzoo.packages"]\n  {name} = "{package}"\n'
    if ".gitignore" not in missing:
        there = (folder / ".gitignore").read_text(encoding="utf-8").split()
        lines = [
            line for line in files[".gitignore"].split() if line.strip("/") not in [one.strip("/") for one in there]
        ]
        said += "".join(["\nadd to .gitignore:\n", *[f"  {line}\n" for line in lines]]) if lines else ""
    return said
