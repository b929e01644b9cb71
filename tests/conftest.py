"""What every test has: an environment of its own, and real servers when it asks for them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.credentials
from tests import servers
from tests.servers import S3Bucket, S3Server

# Read when ray and the S3 clients are imported, so they are set before any test module is. Nothing of the
# user's own configuration, credentials least of all, finds its way into a test.
for _name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
    del os.environ[_name]
# The path of a unix socket holds 107 bytes and Ray's own part of it takes 70, so not below a long TMPDIR.
_FOLDER = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
(Path(_FOLDER) / "ray").mkdir()  # cluster_utils.Cluster notes its address there, and takes it for granted
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
os.environ |= {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_AUTH_MODE": "disabled",
    # also where Ray notes which cluster a driver without an address joins: not one of another process's tests
    "RAY_TMPDIR": _FOLDER,
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's processes take their environment from here; the uploader alone looks into this file.
    tests.credentials.VARIABLE: str(Path(_FOLDER) / "s3.json"),
}


@pytest.hookimpl(tryfirst=True)  # before xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: those with Ray stay in two, and one of these has the cluster."""
    for item in items:
        if item.path.parent.name == "cluster":  # its nodes are for the whole session
            item.add_marker(pytest.mark.xdist_group("nodes"))
        elif "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("cluster"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("programs"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A SeaweedFS server for the whole session."""
    with servers.seaweedfs() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> S3Bucket:
    """An empty bucket that no other test has."""
    return s3_server.new_bucket()


@pytest.fixture(scope="session")
def rclone_s3() -> Iterator[S3Server]:
    """The weak store: it breaks the promises that others only give."""
    with servers.rclone() as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, with four logical CPUs, for the whole session."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=400 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
