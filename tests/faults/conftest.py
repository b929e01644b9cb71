from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.glusterfs import GlusterFS, glusterfs
from tests.faults.processes import Jobs
from tests.faults.runs import ALL
from tests.faults.weed import weed_mounts


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``FAULTS=all`` the first case of each test stands for the others, and what takes minutes stays out."""
    if ALL:
        return
    here = Path(__file__).parent
    seen: set[str] = set()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        out = here in item.path.parents and (name in seen or item.get_closest_marker("slow"))
        (left if out else kept).append(item)
        seen.add(name)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def gluster_server() -> Iterator[GlusterFS]:
    with glusterfs() as server:
        yield server


@pytest.fixture
def gluster(gluster_server: GlusterFS, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An empty folder, through two mounts."""
    name = uuid.uuid4().hex
    with gluster_server.mount(tmp_path / "first") as first, gluster_server.mount(tmp_path / "second") as second:
        (first / name).mkdir()
        yield first / name, second / name


@pytest.fixture
def weed(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The same, on the filesystem that lies."""
    with (
        weed_mounts() as server,
        server.mount(tmp_path / "first") as first,
        server.mount(tmp_path / "second") as second,
    ):
        (first / "here").mkdir()
        yield first / "here", second / "here"


@pytest.fixture(scope="session")
def fork_server() -> Jobs:
    return Jobs()


@pytest.fixture
def jobs(fork_server: Jobs) -> Iterator[Jobs]:
    """Starts processes; none of them outlives its test."""
    with fork_server.stopped():
        yield fork_server
