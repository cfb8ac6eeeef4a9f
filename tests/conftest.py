"""Settings shared by every test: one thread, seeded random numbers, and slow tests only when asked for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

# Tiny tensors run fastest on one thread, and two runs agree to the bit. Set before torch is imported, and inherited by
# every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects slow tests, unless the user asks for them by --slow, by -m, or by a test's full name."""
    if config.getoption("--slow") or config.getoption("-m") or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


# Tests must pass for every seed; this one makes a failure repeat.
SEED = int(os.environ.get("NORMZOO_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seeds the random numbers of each test, so that none depends on the tests before it.

    Afterwards the environment is as before: Lightning keeps the seed and the port of its ranks there, and would use
    both again in the next test.
    """
    import torch  # after OMP_NUM_THREADS is set

    torch.manual_seed(SEED)
    with patch.dict(os.environ):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or mount is None or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a file system to fill")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
