"""The scripts, in a copy of the checkout with a stand-in for Python: pip is noted, and nothing is downloaded."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ["scripts/_env", "scripts/train", "scripts/test", "scripts/check", ".ci/run"]

INSTALLING = "normzoo: installing"

# Makes .venv and installs into it in the manner of Python and pip; everything else it leaves to the real one. It notes
# when it sees another pip at work, takes $PIP_SECONDS, and stands aside when $PIP_FAILS.
PYTHON = f"""#!/bin/sh
venv=$(dirname "$0")/..
case "$*" in
    "-m venv "*)
        for dir; do :; done
        mkdir -p "$dir/bin" "$dir/lib/python3.11/site-packages"
        echo "version = 3.11.0" >"$dir/pyvenv.cfg"
        cp "$0" "$dir/bin/python" ;;
    "-c "*sys.base_prefix*) test -e "$venv/pyvenv.cfg" ;;
    "-m ensurepip"*) touch "$venv/pip" ;;
    "-m pip --version") test -e "$venv/pip" ;;
    "-m pip install"*)
        for what; do :; done
        test -e "$venv/pyvenv.cfg" || echo OUTSIDE >>"$venv/../pip.calls"
        test "$PIP_REQUIRE_VIRTUALENV" = 1 || echo UNGUARDED >>"$venv/../pip.calls"
        test ! -e "$venv/busy" || echo TRAMPLED >>"$venv/../pip.calls"
        echo "$what" >>"$venv/../pip.calls"
        test -z "$PIP_FAILS" || {{ echo "no matching distribution"; exit 1; }}
        touch "$venv/busy"; sleep "${{PIP_SECONDS:-0}}"; rm "$venv/busy"
        printf '#!/bin/sh\\necho "normzoo in $PWD"\\nfor a; do echo "<$a>"; done\\n' >"$venv/bin/normzoo"
        chmod +x "$venv/bin/normzoo" ;;
    "-m pytest"* | "-m ruff"* | "-m mypy"* | "-m pre_commit"*)
        echo "$2 in $PWD"; for a; do echo "<$a>"; done
        test "$FAILS" != "$2" || exit 1 ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


class Checkout:
    """A copy of the checkout, and how to call its scripts."""

    def __init__(self, root: Path, python: Path) -> None:
        self.root = root
        self.python = python

    def start(self, script: str, *args: str, cwd: Path | None = None, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(self.root / script), *args],
            cwd=cwd or self.root,
            env={**os.environ, "PYTHON": str(self.python), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, script: str, *args: str, cwd: Path | None = None, status: int = 0, **env: str) -> str:
        """What the script printed, errors last."""
        with self.start(script, *args, cwd=cwd, **env) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == status, out + err
        return out + err

    @property
    def pip_calls(self) -> list[str]:
        calls = self.root / "pip.calls"
        return calls.read_text().split() if calls.exists() else []


def copy_to(tmp_path: Path) -> Checkout:
    root = tmp_path / "a check out"  # a space in the path, throughout
    for name in [*SCRIPTS, "pyproject.toml", "src/normzoo/__init__.py", ".pre-commit-config.yaml"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Checkout(root, python)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Fresh, nothing installed."""
    return copy_to(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Everything installed; shared by the tests that change nothing."""
    checkout = copy_to(tmp_path_factory.mktemp("ready"))
    checkout.call("scripts/test")
    return checkout


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_read_it(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK) or script == "scripts/_env"


def test_the_second_install_is_a_no_op_under_a_second(checkout: Checkout) -> None:
    assert "once: two to three minutes" in checkout.call("scripts/train")
    start = time.perf_counter()
    said = checkout.call("scripts/train")
    assert time.perf_counter() - start < 1
    assert INSTALLING not in said
    assert checkout.pip_calls == ["."]


@pytest.mark.slow
def test_dev_serves_train_and_adds_to_it(checkout: Checkout) -> None:
    checkout.call("scripts/train")
    checkout.call("scripts/test")
    checkout.call("scripts/train")
    checkout.call("scripts/check")
    assert checkout.pip_calls == [".", ".[dev]"]
    with (checkout.root / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    checkout.call("scripts/train")  # what changed is installed, and the developer's tools stay
    checkout.call("scripts/test")
    assert checkout.pip_calls == [".", ".[dev]", ".[dev]"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_install_is_taken_up_again(checkout: Checkout, how: signal.Signals) -> None:
    with checkout.start("scripts/train", PIP_SECONDS="3") as process:
        wait_for(checkout.root / ".venv" / "busy")
        site = checkout.root / ".venv/lib/python3.11/site-packages"
        half = site / "half-1.0.dist-info"  # pip was here when it was cut short
        half.mkdir()
        (half / "RECORD").write_text("half.py,sha256=x,10\n")
        whole = site / "whole-1.0.dist-info"
        whole.mkdir()
        (whole / "RECORD").write_text("whole.py,sha256=x,4\n")
        (site / "whole.py").write_text("a=1\n")
        os.killpg(process.pid, how)
        process.communicate(timeout=10)
    assert process.returncode != 0
    (checkout.root / ".venv" / "busy").unlink(missing_ok=True)
    said = checkout.call("scripts/train")
    assert "interrupted; repairing it" in said
    assert "normzoo in" in said
    assert whole.exists()
    assert not half.exists()
    assert checkout.pip_calls == [".", "."]
    assert INSTALLING not in checkout.call("scripts/train")


@pytest.mark.slow
def test_two_scripts_at_once_do_not_trample_each_other(checkout: Checkout) -> None:
    with checkout.start("scripts/train", PIP_SECONDS="1") as first:
        wait_for(checkout.root / ".venv" / "busy")
        assert "another script is installing" in checkout.call("scripts/train")
        first.communicate(timeout=20)
    assert first.returncode == 0
    assert checkout.pip_calls == ["."]


@pytest.mark.slow
def test_a_killed_script_leaves_no_lock_behind_and_its_pip_is_waited_for(checkout: Checkout) -> None:
    with checkout.start("scripts/train", PIP_SECONDS="1") as first:
        wait_for(checkout.root / ".venv" / "busy")
        first.kill()  # the script alone: its pip goes on
        said = checkout.call("scripts/train")
        first.communicate(timeout=20)
    assert "waiting" in said
    assert checkout.pip_calls == [".", "."]


@pytest.mark.slow
def test_a_failed_install_says_why_and_is_tried_again(checkout: Checkout) -> None:
    said = checkout.call("scripts/train", status=1, PIP_FAILS="1")
    assert "no matching distribution" in said
    assert "install.log" in said
    assert "normzoo in" in checkout.call("scripts/train")


@pytest.mark.slow
def test_a_moved_checkout_is_noticed(checkout: Checkout) -> None:
    checkout.call("scripts/train")
    checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    (checkout.root / ".venv" / "old").touch()
    assert "moved or copied" in checkout.call("scripts/train")
    assert not (checkout.root / ".venv" / "old").exists()
    assert INSTALLING not in checkout.call("scripts/train")


@pytest.mark.slow
def test_pip_never_runs_outside_the_virtual_environment(checkout: Checkout) -> None:
    """A .venv without pyvenv.cfg is the machine's own Python by another name."""
    checkout.call("scripts/train")
    (checkout.root / ".venv/pyvenv.cfg").unlink()
    checkout.call("scripts/train")
    assert checkout.pip_calls == [".", "."]
    assert (checkout.root / ".venv/pyvenv.cfg").exists()


@pytest.mark.slow
def test_a_removal_cut_short_goes_on(checkout: Checkout) -> None:
    checkout.call("scripts/train")
    checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    (checkout.root / ".venv/pyvenv.cfg").unlink()  # as a killed rm leaves it
    (checkout.root / ".venv/old").touch()
    assert "moved or copied" in checkout.call("scripts/train")
    assert not (checkout.root / ".venv/old").exists()
    assert checkout.pip_calls == [".", "."]


def test_without_a_fitting_python_it_says_what_to_do(checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    said = checkout.call("scripts/train", status=1, PYTHON=str(old))
    assert "is not a Python >= 3.11" in said
    assert not (checkout.root / ".venv").exists()
    # Debian's Python without python3-venv
    old.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac\n')
    assert "apt install python3-venv" in checkout.call("scripts/train", status=1, PYTHON=str(old))


CONFIG = ["<-c>", "<configs/digits_mlp.yaml>"]


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        ([], CONFIG),
        (["--trainer.max_epochs=1"], [*CONFIG, "<--trainer.max_epochs=1>"]),
        (["--name=two words"], [*CONFIG, "<--name=two words>"]),
        (["-c", "configs/x.yaml", "--a=1"], ["<-c>", "<configs/x.yaml>", "<--a=1>"]),
        (["--a", "1", "--config", "x.yaml"], ["<--a>", "<1>", "<--config>", "<x.yaml>"]),
        (["--config=x.yaml"], ["<--config=x.yaml>"]),
        (["-c=x.yaml"], ["<-c=x.yaml>"]),
        (["-c", "x.yaml", "-c", "y.yaml"], ["<-c>", "<x.yaml>", "<-c>", "<y.yaml>"]),
        (["--ckpt_path", "x.ckpt"], [*CONFIG, "<--ckpt_path>", "<x.ckpt>"]),
        (["--help"], ["<--help>"]),
        (["--model.net.help=MLP"], [*CONFIG, "<--model.net.help=MLP>"]),
        (["-c"], ["<-c>"]),  # the command line says what is missing
    ],
    ids=" ".join,
)
def test_train_passes_its_arguments_on(ready: Checkout, args: list[str], passed: list[str]) -> None:
    said = ready.call("scripts/train", *args)
    assert [line for line in said.splitlines() if line.startswith("<")] == ["<fit>", *passed]


def test_train_runs_at_the_root_and_reads_the_users_own_paths(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    said = ready.call("scripts/train", "-c", "mine.yaml", "--ckpt_path=last", cwd=tmp_path)
    assert f"normzoo in {ready.root}" in said
    assert f"<{tmp_path}/mine.yaml>" in said
    assert "<--ckpt_path=last>" in said
    assert "<configs/x.yaml>" in ready.call("scripts/train", "-c", "configs/x.yaml", cwd=tmp_path)


def test_test_passes_its_arguments_on(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").touch()
    args = ["--slow", "-k", "a or b", "test_mine.py::test_a", "tests/cli/test_cli.py"]
    said = ready.call("scripts/test", *args, cwd=tmp_path)
    assert f"pytest in {ready.root}" in said
    for arg in (
        "--durations=10",
        "--slow",
        "-k",
        "a or b",
        f"{tmp_path}/test_mine.py::test_a",
        "tests/cli/test_cli.py",
    ):
        assert f"<{arg}>" in said
    ready.call("scripts/test", status=1, FAILS="pytest")


def test_check_runs_everything_and_shows_every_failure(ready: Checkout) -> None:
    said = ready.call("scripts/check")
    ran = [line.split()[0] for line in said.splitlines() if " ok " in line]
    assert ran == ["lint", "format", "types", "shell", "hooks"]
    broken = ready.root / "scripts/broken"
    broken.write_text("#!/usr/bin/env bash\nif\n")
    said = ready.call("scripts/check", status=1, FAILS="mypy")
    broken.unlink()
    assert "2 of 5 failed: types shell" in said
    assert "--- types\nmypy in" in said
    assert "hooks    ok" in said


def test_check_fixes_when_told(ready: Checkout) -> None:
    assert "--check" in ready.call("scripts/check", status=1, FAILS="ruff")
    said = ready.call("scripts/check", "--fix", status=1, FAILS="ruff")
    assert "<--fix>" in said
    assert "<--check>" not in said
    assert "takes nothing or --fix" in ready.call("scripts/check", "--fiks", status=1)


@pytest.mark.parametrize("fails", ["", "pytest", "mypy"])
def test_ci_runs_all_and_fails_when_one_does(ready: Checkout, fails: str) -> None:
    """The lowest versions are tried on Python 3.11, for which all of them have wheels."""
    lowest = ready.root / ".ci/lowest"
    lowest.write_text("#!/bin/sh\necho lowest in $PWD\n")
    lowest.chmod(0o755)
    said = ready.call(".ci/run", status=int(bool(fails)), FAILS=fails)
    assert "<--slow>" in said
    assert "types" in said
    tries_lowest = sys.version_info[:2] == (3, 11)
    assert ("lowest in" in said) is tries_lowest
    assert said.count("passed, ") == 2 + tries_lowest - bool(fails)


def wait_for(path: Path) -> None:
    """Until `path` is there."""
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
