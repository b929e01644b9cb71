from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.processes import Jobs


@pytest.fixture(scope="session")
def fork_server() -> Jobs:
    return Jobs()


@pytest.fixture
def jobs(fork_server: Jobs) -> Iterator[Jobs]:
    """Starts processes; none of them outlives its test."""
    with fork_server.stopped():
        yield fork_server
