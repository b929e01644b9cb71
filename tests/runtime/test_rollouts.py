"""One row in, many out: a source is done when all that came of it is committed, and never before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
from ray.data import Dataset

from ray_sink import Limits, Sink
from ray_sink.errors import ConfigError, DuplicateKeyError, RunIncomplete
from tests.picky import Picky
from tests.runtime.datasets import LIMITS, cases, open_sink, within

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

KEY, STEPS = "{init_id}/{step:02d}", 5


def inits(count: int, blocks: int = 4) -> Dataset:
    return ray.data.from_items([{"init_id": f"i{i}"} for i in range(count)], override_num_blocks=blocks)


def rollout(ran: Path, breaks: str = "", spoils: str = "") -> Any:
    """A model that writes down what it computes, and fails half way through one row, or spoils what it makes of one."""

    class Rollout:
        def __call__(self, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for step in range(STEPS):
                for name in given["init_id"]:
                    if name == breaks and step == 3:
                        raise ZeroDivisionError(f"{name} breaks")
                    with ran.open("a") as file:
                        file.write(f"{name}\n")
                u = np.full((len(given["init_id"]), 4), float(step))
                u[given["init_id"] == spoils] = np.nan
                yield {**given, "step": [step] * len(u), "u": u}

    return Rollout


def run(sink: Sink, ds: Dataset, model: Any, **arguments: Any) -> Dataset:
    arguments = {"key": KEY, "source": "init_id", "batch_size": 1, "concurrency": 1, "num_cpus": 0.5, **arguments}
    made: Dataset = within(170, lambda: sink.run(ds, model, **arguments))
    return made


def left(sink: Sink, ds: Dataset) -> list[str]:
    return sorted(row["init_id"] for row in sink.remaining(ds, source="init_id").take_all())


def test_a_resumed_rollout_leaves_out_whole_sources_and_never_half_ones(tmp_path: Path) -> None:
    ran, ran_again, staging = tmp_path / "ran", tmp_path / "again", tmp_path / "staging"
    staging.mkdir()
    with pytest.raises(Exception, match="i4 breaks"), open_sink(staging) as first:
        run(first, inits(6, blocks=1), rollout(ran, breaks="i4"))
    steps = Counter(ran.read_text().split())
    # the row behind the one that breaks may be called before Ray Data ends the actor, and be done by then
    half = {name for name in ("i4", "i5") if steps[name] < STEPS}
    assert "i4" in half
    assert set(steps) - {"i4", "i5"}
    with open_sink(staging) as second:
        todo = left(second, inits(6))
        assert set(todo) >= half, "a source that is half done is to be computed as a whole"
        assert len(todo) < 6
        run(second, inits(6), rollout(ran_again))
        assert left(second, inits(6)) == []
    assert sorted(ran_again.read_text().split()) == sorted(todo * STEPS)
    assert sorted(second.manifest) == [f"i{i}/{step:02d}" for i in range(6) for step in range(STEPS)]
    with open_sink(staging) as sealed:
        assert left(sealed, inits(6)) == []
    counts = second.manifest.seal.rows
    assert (counts.rows_in, counts.rows_skipped, counts.rows_out) == (6, 6 - len(todo), len(todo) * STEPS)


def test_two_rows_of_one_source_are_refused_beforehand_where_they_can_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DuplicateKeyError, match="have the source 'i0', 'i1'"), open_sink(tmp_path) as sink:
        run(sink, inits(3).union(inits(2)).materialize(), rollout(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists()


def test_two_rows_of_one_source_keep_the_run_open_where_they_are_computed(tmp_path: Path) -> None:
    (staging := tmp_path / "staging").mkdir()
    ds = cases(6, 3).map(lambda row: {"init_id": f"i{row['id'] % 5}", "member": row["id"]})
    with pytest.raises(RunIncomplete, match=r"1 row\(s\) whose source is another row's"), open_sink(staging) as sink:
        run(sink, ds, rollout(tmp_path / "ran"), key="{init_id}/{member}/{step:02d}")


def test_two_sources_under_one_key_are_an_error(tmp_path: Path) -> None:
    """Also where the rows of a call are not those of its input: by the source that each output names."""

    def model(given: dict[str, Any]) -> dict[str, Any]:
        steps = np.tile(np.arange(STEPS), len(given["init_id"]))
        return {"init_id": np.repeat(given["init_id"], STEPS), "step": steps, "u": np.ones((len(steps), 4))}

    with pytest.raises(DuplicateKeyError, match="two different rows"), open_sink(tmp_path) as sink:
        run(sink, inits(2), model, key="step/{step:02d}")


def test_a_source_with_an_output_that_failed_is_not_done(tmp_path: Path) -> None:
    (staging := tmp_path / "staging").mkdir()
    limits = Limits(takeover_s=LIMITS.takeover_s, max_failures=STEPS)
    with open_sink(staging, limits=limits, save_format=Picky()) as sink:
        run(sink, inits(4), rollout(tmp_path / "ran", spoils="i2"))
        assert left(sink, inits(4)) == ["i2"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "needs key=… or source=…"),
        ({"key": "a", "source": "b"}, "needs key=… or source=…"),
        ({"source": "x"}, "'x'"),
    ],
)
def test_what_names_no_row_is_refused(tmp_path: Path, arguments: Any, match: str) -> None:
    with open_sink(tmp_path) as sink, pytest.raises(ConfigError, match=match):
        sink.remaining(inits(2), **arguments)
