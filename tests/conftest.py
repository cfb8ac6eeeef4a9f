"""Settings shared by every test: one thread, and slow tests only when asked for."""

import os
from collections.abc import Iterator

import pytest

# Tiny tensors run fastest on one thread, and two runs agree to the bit. Set before torch is imported, and inherited by
# every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless the user asked for it: by --slow, by a -m of his own, or by a test's full name."""
    if config.getoption("--slow") or config.getoption("-m") or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


SEEDS = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}


@pytest.fixture(autouse=True)
def no_seed_left() -> Iterator[None]:
    """Forgets the seed that a test gave Lightning: it begins again at it whenever several ranks start."""
    yield
    for name, value in SEEDS.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
