"""The stage in front of the model: what is committed is taken out, rows are told apart, all of them counted."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data import Dataset

from ray_sink.errors import ConfigError, DuplicateKeyError, RunIncomplete
from ray_sink.keys import hash_keys
from ray_sink.runtime.duplicates import refuse_duplicates
from ray_sink.runtime.keying import KeyTemplate
from ray_sink.runtime.rows import SOURCE, Admission, Remaining
from tests.runtime.datasets import cases, check_doubled, doubling, open_sink

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Counts:
    """Keeps what the stage reports, as the coordinator does."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[int, int]] = {}

    def rows_seen(self, dataset_id: str, part: str, rows_in: int, rows_skipped: int) -> None:
        self.parts[part] = rows_in, rows_skipped

    def total(self) -> tuple[int, int]:
        return sum(a for a, _ in self.parts.values()), sum(b for _, b in self.parts.values())


Counting: Any = ray.remote(num_cpus=0)(Counts)


def admission(counting: Any, committed: list[str] | None = None, key: str = "{id}") -> Admission:
    hashes = None if committed is None else ray.put(np.sort(hash_keys(committed)))
    return Admission(Remaining(KeyTemplate.parse(key), hashes, required=False), counting, "ds")


def admitted(ds: Dataset, stage: Admission) -> Dataset:
    return ds.map_batches(stage, batch_size=None, batch_format=None)


def test_every_row_gets_an_identity_of_its_own_and_is_counted() -> None:
    counting = Counting.remote()
    rows = admitted(cases(50, 5), admission(counting)).take_all()
    assert len({row[SOURCE] for row in rows}) == 50
    assert len({row[SOURCE].partition("/")[0] for row in rows}) == 1
    assert ray.get(counting.total.remote()) == (50, 0)


def test_rows_whose_key_is_committed_are_taken_out() -> None:
    committed = [str(i) for i in range(0, 50, 2)]
    frames = ray.data.from_pandas(pd.DataFrame({"id": range(50)}))
    for ds in (cases(50, 5), frames):
        counting = Counting.remote()
        stage = admission(counting, committed)
        assert sorted(row["id"] for row in admitted(ds, stage).take_all()) == list(range(1, 50, 2))
        assert ray.get(counting.total.remote()) == (50, 25)


def test_a_key_that_is_not_known_beforehand_takes_nothing_out() -> None:
    stage = admission(Counting.remote(), ["1"], key="{id}/{step}")
    assert admitted(cases(10), stage).count() == 10


@pytest.mark.slow
def test_identities_are_the_same_when_ray_runs_a_task_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen.jsonl"

    def spy(given: dict[str, Any]) -> dict[str, Any]:
        """Fused behind the stage: writes down what it gave, and kills the first task that gets to row 33."""
        import os

        first = not seen.exists() or '"id": 33,' not in seen.read_text()
        with seen.open("a") as file:
            for i, source in zip(given["id"], given[SOURCE], strict=True):
                file.write(json.dumps({"id": int(i), "source": source, "n": 0}) + "\n")
            file.flush()
        if first and 33 in given["id"]:
            os._exit(1)
        return given

    counting = Counting.remote()
    rows = admitted(cases(40, 4), admission(counting)).map_batches(spy, batch_size=3).take_all()
    told: dict[int, list[str]] = collections.defaultdict(list)
    for line in seen.read_text().splitlines():
        told[json.loads(line)["id"]].append(json.loads(line)["source"])
    assert len(told[33]) == 2
    assert all(len(set(sources)) == 1 for sources in told.values())
    assert {row["id"]: row[SOURCE] for row in rows} == {i: sources[0] for i, sources in told.items()}
    assert ray.get(counting.total.remote()) == (40, 0)


def test_executions_are_told_apart() -> None:
    ds = admitted(cases(4, 2), admission(Counting.remote()))
    executions = [{row[SOURCE].partition("/")[0] for row in ds.take_all()} for _ in range(2)]
    assert len(executions[0] | executions[1]) == 2


def test_a_resumed_run_computes_nothing_again(tmp_path: Path) -> None:
    first = open_sink(tmp_path)
    first.run(cases(12), doubling(), key="case/{id:04d}")
    first.map_batches(cases(1), doubling(), key="case/{id:04d}")
    with pytest.raises(RunIncomplete, match="never run to its end"):
        first.close()

    class OnlyNew:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            assert min(given["id"]) >= 12, "computed again"
            result: dict[str, Any] = doubling()()(given)
            return result

    with open_sink(tmp_path) as second:
        left = second.remaining(cases(20), key="case/{id:04d}")
        assert sorted(row["id"] for row in left.take_all()) == list(range(12, 20))
        receipts = second.run(cases(20), OnlyNew, key="case/{id:04d}")
        assert sorted(row["id"] for row in receipts.take_all()) == list(range(12, 20))
        assert second.remaining(cases(20).materialize(), key="case/{id:04d}").count() == 0
        with pytest.raises(ConfigError, match=r"'case_id'.*'id'"):
            second.remaining(cases(20), key="case_id")
    check_doubled(second, range(20))
    counts = second.manifest.seal.rows
    assert (counts.rows_in, counts.rows_out, counts.rows_skipped) == (20, 8, 12)


@pytest.mark.slow
def test_two_rows_under_one_key_are_found_in_memory_and_in_parquet(tmp_path: Path) -> None:
    template = KeyTemplate.parse("{case}/{step}")
    table = pa.table({"case": ["a", "b"] * 50, "step": [i // 2 % 49 for i in range(100)], "x": [0.0] * 100})
    pa.parquet.write_table(table, tmp_path / "cases.parquet")
    for ds in (ray.data.from_arrow(table), ray.data.read_parquet(str(tmp_path))):
        with pytest.raises(DuplicateKeyError) as caught:
            refuse_duplicates(ds, template)
        assert caught.value.keys == ("a/0", "b/0")
    refuse_duplicates(ray.data.from_arrow(table.slice(0, 98)), template)


def test_thousands_of_different_keys_are_no_duplicates() -> None:
    refuse_duplicates(cases(20_000, 2), KeyTemplate.parse("case/{id}"))


def test_a_dataset_that_must_be_computed_is_not_run_to_look_for_duplicates() -> None:
    def costly(row: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("it ran")

    refuse_duplicates(cases(4).map(costly), KeyTemplate.parse("id"))
