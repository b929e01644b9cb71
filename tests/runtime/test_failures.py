"""Outputs that cannot be committed: all are named, and as many as the user allows end nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ray_sink
from ray_sink import Limits, Sink, WriterOptions
from ray_sink.errors import DuplicateKeyError, OutputsFailed, RunError, SinkError, StagingError
from tests.faults.mounts import tmpfs
from tests.fields import field
from tests.picky import Picky
from tests.runtime.conftest import Run
from tests.runtime.datasets import cases

POISON = torch.full((3,), torch.nan)


def tolerant(run: Run, max_failures: int) -> Sink:
    return run.sink(save_format=Picky(), limits=Limits(takeover_s=5, max_failures=max_failures))


def model_failing(*ids: int) -> Any:
    def model(batch: dict[str, Any]) -> dict[str, Any]:
        p = np.ones((len(batch["id"]), 3))
        p[np.isin(batch["id"], ids)] = np.nan
        return {**batch, "p": p}

    return model


def own_names(run: Run) -> set[str]:
    store = ray_sink.stores.open_store(run.dest or str(run.staging), run.upload)
    return {info.path.rpartition("/")[2] for info in store.list("_ray_sink/") if "_owner" not in info.path}


def test_a_dataset_goes_on_without_as_many_outputs_as_allowed_and_the_next_try_completes_it(folder_run: Run) -> None:
    assert folder_run.dest is not None
    with tolerant(folder_run, 1) as sink:
        receipts = sink.run(cases(12), model_failing(5), key="c/{id}", num_cpus=0.5)
        assert sorted(row["id"] for row in receipts.take_all()) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert list(sink.manifest.failures) == ["c/5"]
    assert "NaN" in sink.manifest.failures["c/5"]
    assert "_PARTIAL" in own_names(folder_run)
    assert "_SUCCESS" not in own_names(folder_run)
    note = folder_run.staging / "_ray_sink" / sink.run_id / "failed" / "000001.json"
    assert json.loads(note.read_text()) == dict(sink.manifest.failures)
    with pytest.raises(RunError, match="partial: 1 output"):
        ray_sink.open(folder_run.dest, sink.run_id)
    rest = ray_sink.open(folder_run.dest, partial=True)
    assert len(rest) == 11
    assert rest.failures == sink.manifest.failures

    with tolerant(folder_run, 0) as again:
        receipts = again.run(cases(12), model_failing(), key="c/{id}", num_cpus=0.5)
        assert [row["id"] for row in receipts.take_all()] == [5]
    assert len(ray_sink.open(folder_run.dest)) == 12
    assert not again.manifest.failures
    assert "_PARTIAL" not in own_names(folder_run)


@pytest.mark.slow
def test_one_more_than_allowed_ends_the_dataset_and_seals_nothing(staging_run: Run) -> None:
    sink = tolerant(staging_run, 1)
    with pytest.raises(SinkError, match="NaN"):
        sink.run(cases(12), model_failing(5, 6), key="c/{id}", num_cpus=0.5)
    with pytest.raises(SinkError):
        sink.close()
    assert not {"_PARTIAL", "_SUCCESS"} & own_names(staging_run)


def test_a_handle_goes_on_too_but_not_with_two_rows_under_one_key(staging_run: Run) -> None:
    with tolerant(staging_run, 1) as sink:
        handle = sink.handle()
        good, bad = handle.write("good", field(1)), handle.write("bad", POISON)
        assert good.result(60).key == "good"
        with pytest.raises(Exception, match="NaN"):
            bad.result(60)
        handle.flush()
        handle.write("twice", field(2), source="run1/0").result(60)
        with pytest.raises(DuplicateKeyError):
            handle.write("twice", field(2), source="run1/5").result(60)
        with pytest.raises(OutputsFailed, match="twice"):
            handle.close()
    assert list(sink.manifest.failures) == ["bad"]
    assert list(sink.manifest) == ["good", "twice"]


def test_what_waits_too_long_for_a_full_disk_is_failed_by_name_and_the_rest_goes_on(
    staging_run: Run, tmp_path: Path
) -> None:
    """What is larger than 1 MiB is encoded on the writer's own disk, the rest in memory."""
    limits = Limits(takeover_s=5, storage_wait_s=1)
    with tmpfs(tmp_path / "local", 2**20) as local:
        sink = staging_run.sink(limits=limits, writers=WriterOptions(temp_dir=str(local)))
        handle = sink.handle()
        large = handle.write("large", torch.zeros(2**20))
        small = handle.write("small", field(1))
        assert small.result(60).key == "small"
        with pytest.raises(StagingError, match=r"'large'.*No space left on device.*waited 1 s for room"):
            large.result(60)
        with pytest.raises(OutputsFailed, match="'large'"):
            handle.close()
        with pytest.raises(OutputsFailed, match="'large'"):
            sink.close()
    with staging_run.sink() as again, again.handle() as handle:
        handle.write("large", torch.zeros(2**20))
    assert sorted(staging_run.outputs()) == ["large.pt", "small.pt"]
