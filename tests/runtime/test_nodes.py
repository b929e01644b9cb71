"""A cluster in which one node mounts something else where the others have the staging folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT
from tests.cli.test_doctor import promised
from tests.faults.processes import needs
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_HEAD = """
import json, sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False, "temp_dir": sys.argv[1]})
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""
_NODE = """
mount -t tmpfs -o size=1m elsewhere "$1" || exit 1
exec "$2" -m ray.scripts.scripts start --address="$3" --num-cpus=1 --object-store-memory=80000000 --block
"""


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()  # and it takes its cluster down
        else:
            process.terminate()
        process.wait(60)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a cluster of two, and a folder that the second node sees as another filesystem."""
    needs("root and unshare, for a node with mounts of its own", os.geteuid() == 0 and bool(shutil.which("unshare")))
    folder = tmp_path / "staging"
    folder.mkdir()
    with ExitStack() as cleanup:
        # the path of a unix socket holds 107 bytes and Ray's own part of it takes 70
        session = cleanup.enter_context(
            tempfile.TemporaryDirectory(prefix="rs-", ignore_cleanup_errors=True, dir="/tmp")
        )
        pipe = subprocess.PIPE
        head = subprocess.Popen([sys.executable, "-c", _HEAD, session], stdin=pipe, stdout=pipe, text=True)
        cleanup.enter_context(ended(head))
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        command = ["unshare", "-m", "sh", "-c", _NODE, "sh", str(folder), sys.executable, address]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        cleanup.enter_context(ended(node))
        until(lambda: len(living(address)) == 2, deadline_s=90)
        yield address, folder


def living(address: str) -> list[dict[str, Any]]:
    code = "import json, sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(json.dumps(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=False)
    nodes = json.loads(done.stdout.strip().rpartition("\n")[2]) if done.returncode == 0 else []
    return [node for node in nodes if node["Alive"]]


def test_a_node_that_sees_another_filesystem_there_is_named(two_nodes: tuple[str, Path]) -> None:
    address, folder = two_nodes
    command = [sys.executable, "-m", "ray_sink.cli", "doctor", "--staging", str(folder), "--address", address, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    said = [f for f in answer["findings"] if f["name"] == "visibility"]
    (wrong,) = [f["message"] for f in said if f["status"] == "failed"]
    (right,) = [f["message"] for f in said if f["status"] == "ok"]
    assert "is another filesystem there (tmpfs at " in wrong
    names = {f"({node['NodeID'][:8]})" for node in living(address)}
    assert len(names) == 2
    assert {name for name in names if name in wrong} | {name for name in names if name in right} == names
    assert all((name in wrong) != (name in right) for name in names)
    assert promised(answer)["P5"] == "cannot hold"
    assert list(folder.iterdir()) == []
