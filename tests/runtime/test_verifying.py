"""``ray-sink verify`` on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from ray_sink import UploadOptions
from ray_sink.checking import StoreChecks
from ray_sink.errors import ConfigError
from ray_sink.manifest import Seal
from ray_sink.runtime.verifying import ClusterChecks
from ray_sink.stores import open_store
from ray_sink.verification import Checks, Verification
from tests import credentials
from tests.cli.conftest import call
from tests.cli.runs import sealed_run, staged_run
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_tasks_find_what_one_process_finds(tmp_path: Path) -> None:
    dest = sealed_run(tmp_path / "dest", 50)
    (dest / "runs/sample_0007.npy").unlink()
    (dest / "runs/sample_0031.npy").write_bytes(b"other")
    store = open_store(str(dest), UploadOptions())
    seen: list[int] = []
    verdicts = []
    cluster = ClusterChecks(str(dest), UploadOptions(), on_piece=seen.append)
    everyone: list[Checks] = [StoreChecks(store, concurrency=4), cluster]
    for checks in everyone:
        checking = Verification(store, checks, piece_outputs=8)
        seal = checking.seal("run-1")
        assert isinstance(seal, Seal)
        verdicts.append(checking.check(seal))
    here, there = verdicts
    assert here == there
    assert [problem.path for problem in here.problems] == ["runs/sample_0007.npy", "runs/sample_0031.npy"]
    assert (there.outputs, len(seen), sum(seen)) == (50, 7, there.bytes)


def test_a_folder_that_a_node_does_not_see_is_no_missing_output(tmp_path: Path) -> None:
    dest = sealed_run(tmp_path / "dest", 4)
    store = open_store(str(dest), UploadOptions())
    checking = Verification(store, ClusterChecks(str(tmp_path / "elsewhere"), UploadOptions()))
    seal = checking.seal("run-1")
    assert isinstance(seal, Seal)
    with pytest.raises(ConfigError, match="does not see"):
        checking.check(seal)


def test_a_bucket_is_verified_by_the_cluster_with_the_nodes_own_credentials(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    (staging := tmp_path / "staging").mkdir()
    server = s3_bucket.server
    sign_in(monkeypatch, server)  # this process alone; the cluster's have what is offered to them
    credentials.offer(server)
    dest = f"{s3_bucket.url}/runs/1"
    through = ("--endpoint-url", server.endpoint, "--region", server.region, "--credentials", credentials.FUNCTION)
    staged_run(staging, dest, 8)
    assert call("upload", "--staging", staging, *through).code == 0
    server.client().delete_object(Bucket=s3_bucket.name, Key="runs/1/runs/sample_0003.npy")
    answer = call("verify", dest, *through, "--address", "auto", "--json")
    assert answer.code == 1
    assert [problem["key"] for problem in answer.json["runs"][0]["problems"]] == ["runs/sample_0003"]
    assert ray.is_initialized(), "the cluster is not the command's"
