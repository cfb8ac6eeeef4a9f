"""The command `normzoo new`: writes the project in `template/` under the name of the user's."""

import json
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
    parser.add_argument("folder", metavar="FOLDER", help="the folder to create; its name becomes that of the package")
    parser.add_argument(
        "--into",
        action="store_true",
        help="add the project to a folder that exists, such as a repository; no file in it is changed",
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
        print(f"kept yours: {settings_file(folder) if path == 'pyproject.toml' else path}")
    print(to_add(files, folder), end="")
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
        raise InputError(f"{file} cannot be read: {error}; correct it first.") from error


def require_name(name: str, folder: Path) -> None:
    """Raises `InputError` for a name that another module has, or that no package can have."""
    if not re.fullmatch(r"[A-Za-z](\w*[A-Za-z0-9])?", name, re.ASCII) or keyword.iskeyword(name):
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_0123456789").lower()
        hint = f", such as {better}" if better and not keyword.iskeyword(better) else ""
        raise InputError(
            f"{name!r} cannot be the name of a package: use ASCII letters, digits and _, and no keyword{hint}."
        )
    is_own = any((folder / path / name).is_dir() for path in ("", "src"))
    found = None if is_own else find_spec(name)
    if name in sys.stdlib_module_names or (found and found.origin):  # a folder without __init__.py has no origin
        place = f" ({found.origin})" if found else ""
        raise InputError(f"{name!r} is the name of a module that exists already{place}: choose another.")


def require_folder(given: str, folder: Path, into: bool) -> None:
    """Raises `InputError` for a folder that the project cannot be written to."""
    if into and not folder.is_dir():
        raise InputError(f"{given} is not a folder: --into adds to one that exists; leave it out to create one.")
    if not into and lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(
            f"{given} exists and is not an empty folder: choose another name, or add to the folder by --into, which "
            f"changes no file in it."
        )


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
    return lexists(folder / path) or (path == "pyproject.toml" and settings_file(folder) != path)


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
                file.chmod(mode | (mode & 0o444) >> 2)  # executable by all who can read it
    except BaseException as error:
        for one in reversed(made):
            one.rmdir() if one.is_dir() else one.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{error.filename or file} cannot be written ({error.strerror}); no file was.") from error
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


def to_add(files: dict[str, str], folder: Path) -> str:
    """What the user adds by hand to files that exist, as text; nothing for those that have it or were just written."""
    settings, [package] = settings_file(folder), [path for path in files if path.endswith("__init__.py")]
    missing = missing_settings if settings == "pyproject.toml" else missing_arguments
    lines = {
        settings: missing(files, folder),
        **{path: missing_lines(files, folder, path) for path in (".gitignore", package)},
    }
    return "".join("\n  ".join([f"\nadd to {path}:", *add]) + "\n" for path, add in lines.items() if add)


def settings_file(folder: Path) -> str:
    """The file with the name and the dependencies of the project in a folder, or that will have them."""
    if "name" not in read_pyproject(folder).get("project", {}):
        if (folder / "setup.py").is_file():
            return "setup.py"
        if "[metadata]" in read_text(folder / "setup.cfg"):
            return "setup.cfg"
    return "pyproject.toml"


def missing_settings(files: dict[str, str], folder: Path) -> list[str]:
    """The lines of the project's pyproject.toml that the one in the folder lacks."""
    ours, theirs = tomllib.loads(files["pyproject.toml"])["project"], read_pyproject(folder)
    there = theirs.get("project", {})
    if "name" not in there:  # it has the settings of tools only
        build, *project = files["pyproject.toml"].partition("\n\n[tool")[0].split("\n\n")
        return "\n".join(project if "build-system" in theirs else [build, *project]).splitlines()
    lines = []
    if not any(one.startswith("normzoo") for one in there.get("dependencies", [])):
        lines += ["[project]", f"dependencies = {json.dumps(ours['dependencies'])}"]
    for name, package in ours["entry-points"]["normzoo.packages"].items():
        if name not in there.get("entry-points", {}).get("normzoo.packages", {}):
            lines += ['[project.entry-points."normzoo.packages"]', f'{name} = "{package}"']
    return lines


def missing_arguments(files: dict[str, str], folder: Path) -> list[str]:
    """What the project's pyproject.toml says and the folder's setup.py or setup.cfg does not, in their words."""
    file = settings_file(folder)
    if "normzoo.packages" in read_text(folder / file):
        return []
    project = tomllib.loads(files["pyproject.toml"])["project"]
    [dependency], [(name, package)] = project["dependencies"], project["entry-points"]["normzoo.packages"].items()
    if file == "setup.py":
        return [f'install_requires=["{dependency}"],', f'entry_points={{"normzoo.packages": ["{name} = {package}"]}},']
    entry = ["[options.entry_points]", "normzoo.packages =", f"    {name} = {package}"]
    return ["[options]", f"install_requires = {dependency}", *entry]


def missing_lines(files: dict[str, str], folder: Path, path: str) -> list[str]:
    """The patterns of the project's .gitignore, or the imports of its package, that the file in the folder lacks."""
    there = [line.strip(" /") for line in read_text(folder / path).splitlines()]
    wanted = [line for line in files[path].splitlines() if line and not line.startswith('"""')]
    return [line for line in wanted if line.strip("/") not in there]


def read_text(file: Path) -> str:
    """The text of a file, whatever its encoding; none if there is no file."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
