"""Runs whose nodes share no filesystem: the journal is in the bucket, and a disk that is lost is no loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
import torch

from ray_sink import DictMode, NodeLocal, Sink, State, UploadOptions
from ray_sink.errors import ConfigError, StagingError
from tests.fields import field
from tests.runtime.conftest import LIMITS, Run, make_run, pids_of
from tests.waiting import until


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, ray_cluster: None) -> Run:
    """A run into a bucket, with each node's own disk for staging."""
    return make_run("s3", request, tmp_path)


def node_local(run: Run, **arguments: Any) -> Sink:
    return run.sink(**{"staging": NodeLocal(str(run.staging)), "ack": "uploaded", **arguments})


def test_a_dataset_goes_to_the_bucket_and_comes_back_without_any_disk(run: Run) -> None:
    ds = ray.data.range(24, override_num_blocks=6)

    # by value: Ray's processes do not import the tests
    def model(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "p": np.stack([np.full((16, 16), float(i)) for i in batch["id"]])}

    def half() -> None:
        with node_local(run) as sink:
            receipts = sink.run(ds.limit(10), model, key="a/{id:02d}", batch_size=2)
            assert {row["state"] for row in receipts.take_all()} == {State.UPLOADED}
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        half()
    assert len(run.outputs()) == 10
    assert [path.name for path in run.staging.rglob("*")] == ["_ray_sink"], "nothing is left on the node"
    with node_local(run) as sink:
        assert sink.remaining(ds, key="a/{id:02d}").count() == 14
        sink.run(ds, model, key="a/{id:02d}", batch_size=2)
        assert len(pids_of("UploaderShell")) == 2, "one for the run, one beside the writer"
    until(lambda: not pids_of("UploaderShell") + pids_of("WriterShell"), deadline_s=30)
    manifest = run.manifest()
    assert list(manifest) == [f"a/{i:02d}" for i in range(24)]
    assert all(float(manifest.load(f"a/{i:02d}").mean()) == i for i in range(24))  # type: ignore[union-attr]
    assert sink.manifest.seal.rows.rows_skipped == 10


def test_a_handle_waits_for_the_bucket_and_large_files_go_in_parts(run: Run) -> None:
    upload = run.upload
    small_parts = UploadOptions(
        credentials=upload.credentials, storage_options=upload.storage_options, multipart_above_bytes=5 * 2**20
    )
    with node_local(run, upload=small_parts) as sink, sink.handle() as handle:
        tickets = [handle.write(f"k/{i}", field(i, 20_000)) for i in range(6)]
        large = handle.write("large", torch.arange(3_000_000))
        assert all(ticket.result(60).state is State.UPLOADED for ticket in tickets)
        assert large.result(60).bytes > 20 * 2**20
        again = handle.write("k/0", field(99, 20_000)).result(60)
        assert again == tickets[0].result()
    manifest = run.manifest()
    assert torch.equal(manifest.load("large"), torch.arange(3_000_000))  # type: ignore[arg-type]
    assert torch.equal(manifest.load("k/0"), field(0, 20_000))  # type: ignore[arg-type]


def test_a_node_without_the_folder_is_named(run: Run) -> None:
    with (
        pytest.raises(StagingError, match="there is no folder"),
        node_local(run, staging=NodeLocal(str(run.staging / "nvme"))) as sink,
        sink.handle() as handle,
    ):
        handle.write("a", field(1)).result(60)


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        ({"ack": "staged"}, 'ack="uploaded"'),
        ({"on_conflict": "replace"}, 'on_conflict="error"'),
        ({"dict_mode": DictMode.SPLIT}, "DictMode.SINGLE"),
    ],
)
def test_what_only_a_shared_folder_can_do_is_refused(tmp_path: Path, arguments: dict[str, Any], needs: str) -> None:
    with pytest.raises(ConfigError, match=needs):
        Sink("s3://bucket/x", staging=NodeLocal(str(tmp_path)), **{"ack": "uploaded", **arguments})
    with pytest.raises(ConfigError, match="a destination"):
        Sink(None, staging=NodeLocal(str(tmp_path)), ack="uploaded")


def test_a_destination_that_cannot_tell_attempts_apart_is_refused(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(ConfigError, match="Take a staging folder that all nodes mount"):
        Sink(tmp_path / "dest", staging=NodeLocal(str(tmp_path / "nvme")), ack="uploaded", limits=LIMITS)
