"""Wrong and hostile configs and flags: each ends with one clear message, and leaves nothing behind."""

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import BRIEF, normzoo
from hostile import FORBIDDEN, MARKER, Case, Maker

NUMBER = int(os.environ.get("HOSTILE_CASES", "300"))
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
FEW = 40  # in the tests that take seconds
SECONDS = 20  # for one case, of which almost all take less than one


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, beside a module that nobody may import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "forbidden.py").write_text(FORBIDDEN)
    (tmp_path / "here").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    sys.modules.pop("forbidden", None)


def late(*_: Any) -> None:
    raise TimeoutError(f"no end after {SECONDS} s")


def faults(case: Case, place: Path) -> list[str]:
    """Runs a case, and says what was not as it must be."""
    for name, content in case.files.items():
        (place / name).write_bytes(content)
    before = {str(path) for path in place.rglob("*")}
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        result = normzoo("fit", *BRIEF, *case.arguments)
    except BaseException as error:  # what would be a traceback
        return [f"{type(error).__name__}: {error}"[:500]]
    finally:
        signal.alarm(0)
    found = []
    if (place / MARKER).exists() or "forbidden" in sys.modules:
        found.append("a forbidden module was imported")
    if new := {str(path) for path in place.rglob("*")} - before:
        found.append(f"wrote {sorted(new)}")
    if case.lucky and result.status == 0:
        return [*found, "lucky"]
    if result.status != 1:
        found.append(f"status {result.status}")
    if not result.err.startswith("normzoo: error: ") or result.err.count("normzoo: error: ") != 1:
        found.append("not one message")
    if "Traceback" in result.err + result.out:
        found.append("a traceback")
    if len(result.err.splitlines()) > 8 or len(result.err) > 2500:
        found.append(f"a message of {len(result.err.splitlines())} lines, {len(result.err)} letters")
    if not any(name in result.err for name in case.names if name):
        found.append(f"the message names none of {case.names}")
    if case.meant not in result.err:
        found.append(f"the message does not tell of {case.meant}")
    if hidden := re.search(r"Namespace\(|object at 0x|NoneType|unhashable|has no attribute", result.err):
        found.append(f"the message speaks of {hidden[0]}")
    return [*found, result.err] if found else []


def check(number: int, place: Path) -> None:
    """All cases keep the law, and nine of ten are truly wrong."""
    broken: list[str] = []
    lucky = 0
    for index, case in enumerate(Maker(SEED).cases(number)):
        for file in place.iterdir():
            file.unlink()
        found = faults(case, place)
        if found == ["lucky"]:
            lucky += 1
        elif found:
            texts = {name: content[:600] for name, content in case.files.items()}
            arguments = [argument[:200] for argument in case.arguments]
            broken.append(f"{index} {case.kind}: {arguments} {texts}\n    " + "\n    ".join(found))
    assert not broken, f"{len(broken)} of {number}:\n" + "\n".join(broken)
    assert lucky <= number / 10


def test_each_ends_with_one_message(place: Path) -> None:
    check(FEW, place)


@pytest.mark.slow
def test_each_of_many_ends_with_one_message(place: Path) -> None:
    check(NUMBER, place)


def test_there_are_cases_of_every_kind() -> None:
    cases = Maker(SEED).cases(NUMBER)
    assert len(Counter(case.kind for case in cases)) == len(Maker(SEED).makers)
    assert cases == Maker(SEED).cases(NUMBER)
    assert cases != Maker(SEED + 1).cases(NUMBER)
