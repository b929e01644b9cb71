"""Sink.datasink: the rows of any pipeline, written by tasks that Ray Data may repeat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
from ray.data import DataContext, Dataset

from ray_sink import Sink
from ray_sink.errors import ConfigError, DuplicateKeyError, RunIncomplete
from tests.runtime.datasets import cases, check_doubled, doubling, open_sink, within

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

KEY = "case/{id:04d}"


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    """One sink for small tests; datasets that failed are among them."""
    sink = open_sink(tmp_path_factory.mktemp("staging"))
    yield sink
    with contextlib.suppress(RunIncomplete):
        sink.close()


def doubled(ds: Dataset) -> Dataset:
    """What some model, not ours to wrap, has made of it."""
    return ds.map_batches(lambda given: doubling()()(given))


def test_a_dataset_is_written_row_by_row_and_the_run_sealed(tmp_path: Path) -> None:
    with open_sink(tmp_path) as sink:
        doubled(cases(20)).write_datasink(sink.datasink(key=KEY))
    check_doubled(sink, range(20))
    counts = sink.manifest.seal.rows
    assert (counts.rows_in, counts.rows_out, counts.rows_skipped) == (20, 20, 0)


def test_a_write_task_that_dies_half_way_is_repeated_and_doubles_nothing(tmp_path: Path) -> None:
    (staging := tmp_path / "staging").mkdir()
    died = tmp_path / "died"

    def model(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Fused with the write: dies behind a row that is staged already."""
        import os
        import time

        deadline = time.monotonic() + 60
        for i in given["id"].tolist():
            if i == 7 and not died.exists():
                while not (staging / "case/0005.pt").exists():
                    assert time.monotonic() < deadline, "nothing was written before the task's end"
                    time.sleep(0.05)
                died.touch()
                os._exit(1)
            yield {"id": np.array([i]), "p": np.full((1, 2, 3), 2.0 * i, np.float32)}

    context = DataContext.get_current()
    usual = context.target_max_block_size
    context.target_max_block_size = 16  # a block of its own for every row
    try:
        with open_sink(staging) as sink:
            cases(20).map_batches(model).write_datasink(sink.datasink(key=KEY))
    finally:
        context.target_max_block_size = usual
    assert died.exists()
    check_doubled(sink, range(20))
    assert sink.manifest.seal.conflicts.retries >= 1
    assert sink.manifest.seal.rows.rows_out == 20


def test_a_dataset_that_failed_keeps_the_run_open_until_it_is_written(tmp_path: Path) -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] == 17:
            raise ZeroDivisionError("row 17")
        return row

    first = open_sink(tmp_path)
    with pytest.raises(Exception, match="row 17"):
        doubled(cases(20).map(broken)).write_datasink(first.datasink(key=KEY))
    with pytest.raises(RunIncomplete, match="row 17"):
        first.close()
    with open_sink(tmp_path) as second:
        known = second.status().decided
        assert 0 < known < 20
        end = second.datasink(key=KEY)
        with pytest.raises(Exception, match="row 17"):
            doubled(cases(20).map(broken)).write_datasink(end)
        doubled(cases(20)).write_datasink(end)
    check_doubled(second, range(20))
    counts = second.manifest.seal.rows
    assert (counts.rows_in, counts.rows_out + counts.rows_skipped) == (20, 20)
    assert counts.rows_skipped == known


def test_a_datasink_that_wrote_nothing_keeps_the_run_open(tmp_path: Path) -> None:
    with pytest.raises(RunIncomplete, match="never run to its end"), open_sink(tmp_path) as sink:
        sink.datasink(key="id")


def test_blocks_that_ray_data_drops_are_missed(sink: Sink) -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] == 17:
            raise ZeroDivisionError("row 17")
        return row

    context = DataContext.get_current()
    context.max_errored_blocks = -1
    try:
        ds = cases(20)
    finally:
        context.max_errored_blocks = 0
    before = set(sink.status().unfinished)
    doubled(ds.map(broken)).write_datasink(sink.datasink(key="dropped/{id}"))
    (reason,) = set(sink.status().unfinished) - before
    assert "lost 1 block(s)" in reason


def test_two_rows_under_one_key_are_an_error_in_whichever_tasks_they_are(sink: Sink) -> None:
    ds = doubled(ray.data.from_items([{"id": i, "half": i // 2 % 7} for i in range(16)], override_num_blocks=16))
    with pytest.raises(DuplicateKeyError, match="two different rows"):
        within(120, lambda: ds.write_datasink(sink.datasink(key="half/{half}")))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"key": "case_id"}, r"'case_id'.*the dataset lacks.*'id' \(int64\)"),
        ({"key": "id"}, r"no tensor column.*'id' \(int64\)"),
        ({"key": "id", "columns": ["u"]}, r"'u'.*'id' \(int64\)"),
    ],
    ids=["key", "nothing", "column"],
)
def test_what_a_dataset_lacks_is_named(sink: Sink, arguments: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        cases(2, 1).write_datasink(sink.datasink(**arguments))


def test_a_wrong_argument_is_refused_before_anything_is_written_down(sink: Sink) -> None:
    before = sink.status().unfinished
    for arguments in ({"key": "{id"}, {"key": "id", "columns": 3}):
        with pytest.raises(ConfigError):
            sink.datasink(**arguments)
    assert sink.status().unfinished == before
