"""Two ranks for all tests of this folder: each start imports torch and Lightning twice."""

from collections.abc import Iterator

import pytest
from ranks import TwoRanks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    pool = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
