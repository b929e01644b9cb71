from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from seaweedfs import ServerProcess, free_ports

from tests.cluster.network import Network
from tests.cluster.nodes import Nodes
from tests.cluster.runs import NodesRun
from tests.faults.glusterfs import GlusterFS, glusterfs
from tests.faults.plan import Plan
from tests.servers import S3Server, listens, seaweedfs


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(scope="session")
def shared(network: Network) -> Iterator[GlusterFS]:
    """The filesystem that all nodes mount."""
    with glusterfs(network.gateway) as server:
        yield server


@pytest.fixture(scope="session")
def shared_here(shared: GlusterFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same, for this process to look into."""
    with shared.mount(tmp_path_factory.mktemp("gluster") / "here") as here:
        yield here


@pytest.fixture(scope="session")
def store(network: Network) -> Iterator[S3Server]:
    """The store, where all nodes reach it."""
    with seaweedfs(network.gateway) as server:
        yield server


@pytest.fixture(scope="session")
def all_nodes(network: Network, shared: GlusterFS, store: S3Server) -> Iterator[Nodes]:
    with Nodes(network, shared.volume, store.environment()) as made:
        yield made


@pytest.fixture
def nodes(all_nodes: Nodes) -> Nodes:
    """A head, two nodes for producers and one for writers, all alive: what the last test took is there again."""
    all_nodes.complete()
    return all_nodes


@pytest.fixture(scope="session")
def redis(network: Network) -> Iterator[dict[str, str]]:
    """Settings of a head that keeps what it knows in Redis; none where there is no Redis and need not be."""
    if shutil.which("redis-server") is None and os.environ.get("CI") != "true":
        yield {}
        return
    (port,) = free_ports(1, network.gateway)
    command = ["redis-server", "--bind", network.gateway, "--port", str(port), "--protected-mode", "no", "--save", ""]
    server = ServerProcess(command, folder=Path(tempfile.mkdtemp(prefix="redis-")))
    try:
        server.wait_until(lambda: listens(port, network.gateway), deadline_s=60)
        yield {"RAY_REDIS_ADDRESS": f"{network.gateway}:{port}"}
    finally:
        server.stop()


RunMaker = Callable[..., NodesRun]


@pytest.fixture
def run_of(nodes: Nodes, shared_here: Path, store: S3Server) -> RunMaker:
    """Makes the run of a plan: ``run_of(Plan(outputs=…), "--work", "handles")``."""

    def make(plan: Plan, *more: object) -> NodesRun:
        return NodesRun(nodes, shared_here, store.new_bucket(), plan, *more)

    return make
