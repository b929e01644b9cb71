"""Sink.run: models called unchanged, outputs under their keys, receipts beside the columns kept."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

import ray_sink
from ray_sink import DictMode, SaveFormat, Sink
from ray_sink.errors import ConfigError, DuplicateKeyError, InvalidKeyError, RunIncomplete, SinkError
from ray_sink.runtime.receipts import SCHEMA
from ray_sink.runtime.rows import SOURCE
from tests.runtime.datasets import cases, check_doubled, doubling, open_sink, within

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    """One sink for many small tests; datasets that failed are among them."""
    sink = open_sink(tmp_path_factory.mktemp("staging"))
    yield sink
    with contextlib.suppress(RunIncomplete):
        sink.close()


def batch(count: int = 6) -> dict[str, Any]:
    return {"id": np.arange(count)}


def call(sink: Sink, model: Any, given: Any = None, **arguments: Any) -> list[dict[str, Any]]:
    """What comes back from one call of the class that Ray Data would run, here."""
    stage = sink.wrap(model, **{"key": "id", **arguments})()
    with DataContext.current(DataContext.get_current().copy()):  # a failure sets an option in the process's context
        rows: list[dict[str, Any]] = asyncio.run(stage(batch() if given is None else given)).to_pylist()
    return rows


def load(row: dict[str, Any]) -> Any:
    return torch.load(row["uri"], weights_only=True)


# -- whole runs ------------------------------------------------------------------------------------------------------


def test_a_model_runs_unchanged_and_its_outputs_are_sealed(tmp_path: Path) -> None:
    with open_sink(tmp_path) as sink:
        receipts = sink.run(cases(40), doubling(), key="case/{id:04d}", batch_size=6)
        table = pa.concat_tables(ray.get(receipts.to_arrow_refs()))
    assert table.column_names == ["id", *SCHEMA.names]
    rows = {row["id"]: row for row in table.to_pylist()}
    assert sorted(rows) == list(range(40))
    assert all(row["key"] == f"case/{i:04d}" and row["state"] == "staged" for i, row in rows.items())
    assert all(Path(row["uri"]).stat().st_size == row["bytes"] for row in rows.values())
    check_doubled(sink, range(40))
    counts = sink.manifest.seal.rows
    assert (counts.rows_in, counts.rows_out, counts.rows_skipped) == (40, 40, 0)
    assert sorted(row["key"] for row in sink.manifest.to_dataset().take_all()) == sorted(sink.manifest)


def test_the_models_arguments_reach_it(tmp_path: Path) -> None:
    class Model:
        def __init__(self, scale: float, *, offset: float) -> None:
            self.scale, self.offset = scale, offset

        def __call__(self, batch: pd.DataFrame, factor: float, *, power: int) -> dict[str, Any]:
            assert isinstance(batch, pd.DataFrame)
            assert list(batch) == ["id"]
            assert len(batch) <= 3
            values = (batch["id"].to_numpy() * self.scale * factor) ** power + self.offset
            return {"name": [f"n{i}" for i in batch["id"]], "p": values[:, None]}

    with open_sink(tmp_path) as sink:
        sink.run(
            cases(7, blocks=2),
            Model,
            key="name",
            batch_size=3,
            batch_format="pandas",
            fn_constructor_args=(2.0,),
            fn_constructor_kwargs={"offset": 1.0},
            fn_args=(3.0,),
            fn_kwargs={"power": 2},
            compute=ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
    value: Any = sink.manifest.load("n5")
    assert value.tolist() == [901.0]


def test_the_class_behind_it_serves_map_batches_too(sink: Sink) -> None:
    wrapped = sink.wrap(doubling(), key="wrapped/{id}")
    receipts = cases(8).map_batches(wrapped, batch_size=4, compute=ActorPoolStrategy(size=1)).take_all()
    assert sorted((row["id"], row["key"]) for row in receipts) == [(i, f"wrapped/{i}") for i in range(8)]


# -- single calls ----------------------------------------------------------------------------------------------------


async def coroutine(given: dict[str, Any]) -> dict[str, Any]:
    return {"id": given["id"], "p": torch.stack([torch.ones(2, 3) * 2 * i for i in given["id"].tolist()])}


async def async_generator(given: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield {"id": given["id"], "p": np.ones((len(given["id"]), 2, 3)) * 2 * given["id"][:, None, None]}


def generator(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for i in given["id"]:
        yield {"id": [i], "p": np.ones((1, 2, 3)) * 2 * i}


def table(given: dict[str, Any]) -> pa.Table:
    from ray.data.extensions import ArrowTensorArray

    tensors = np.ones((len(given["id"]), 2, 3)) * 2 * given["id"][:, None, None]
    return pa.table({"id": given["id"], "p": ArrowTensorArray.from_numpy(tensors)})


def frame(given: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({"id": given["id"], "p": [np.ones((2, 3)) * 2 * i for i in given["id"]]})


class AsCoroutine:
    async def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        return await coroutine(given)


class AsGenerator:
    def __call__(self, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from generator(given)


@pytest.mark.parametrize(
    "model",
    [coroutine, async_generator, generator, table, frame, functools.partial(generator), AsCoroutine, AsGenerator],
    ids=["coroutine", "async generator", "generator", "table", "frame", "partial", "awaited class", "generating class"],
)
def test_models_of_every_kind_are_taken(sink: Sink, model: Any, request: pytest.FixtureRequest) -> None:
    rows = call(sink, model, key=f"{abs(hash(request.node.name))}/{{id}}")
    assert [row["id"] for row in rows] == list(range(6))
    assert all((load(row) == torch.ones(2, 3) * 2 * row["id"]).all() for row in rows)


@pytest.mark.parametrize("kind", ["dict", "frame", "table"])
def test_a_model_gets_its_batch_without_what_the_sink_put_in(sink: Sink, kind: str) -> None:
    seen: list[Any] = []

    def model(given: Any) -> dict[str, Any]:
        seen.append(given)
        return {"id": np.arange(6), "p": np.ones((6, 3))}

    given: Any = {**batch(), SOURCE: np.array([f"x/{i}" for i in range(6)])}
    if kind != "dict":
        given = pd.DataFrame(given) if kind == "frame" else pa.table(given)
    call(sink, model, given, key=f"{kind}/{{id}}")
    assert type(seen[0]) is type(given)
    assert list(seen[0].column_names if kind == "table" else seen[0]) == ["id"]


def test_a_rollout_gives_more_rows_than_it_got(tmp_path: Path) -> None:
    def rollout(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in range(3):
            state = torch.full((len(given["id"]), 4), float(step), dtype=torch.bfloat16)
            yield {"id": given["id"], "step": [step] * len(given["id"]), "u": state, "v": state.float()}

    with open_sink(tmp_path, save_format=SaveFormat.SAFETENSORS, dict_mode=DictMode.SPLIT) as sink:
        rows = call(sink, rollout, key="{id}/{step:02d}", columns=["u", "v"])
    assert {(row["id"], row["step"]) for row in rows} == {(i, step) for i in range(6) for step in range(3)}
    assert all(len(row["uris"]) == len(set(row["uris"])) == 2 for row in rows)
    value: Any = ray_sink.open(str(tmp_path)).load("5/02")
    assert value["u"].dtype == torch.bfloat16
    assert value["v"].tolist() == [2.0] * 4


def test_the_key_may_come_from_the_input_alone(sink: Sink) -> None:
    rows = call(sink, lambda given: {"p": np.ones((6, 3)) * given["id"][:, None]}, key="input/{id}")
    assert [(row["id"], row["key"]) for row in rows] == [(i, f"input/{i}") for i in range(6)]
    assert [float(load(row)[0]) for row in rows] == list(range(6))


def test_rows_of_different_shapes_are_saved(sink: Sink) -> None:
    rows = call(sink, lambda given: {**given, "p": [torch.ones(int(i) + 1) for i in given["id"]]}, key="shapes/{id}")
    assert [len(load(row)) for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_model_may_use_one_buffer_for_all_its_outputs(sink: Sink) -> None:
    buffer = np.zeros((6, 4))

    def model(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for step in range(3):
            buffer[:] = step
            yield {"id": given["id"], "step": [step] * 6, "p": buffer}

    rows = call(sink, model, key="buffer/{id}/{step}")
    assert all((load(row) == row["step"]).all() for row in rows)


def test_a_model_that_returns_no_rows_gets_none_back(sink: Sink) -> None:
    assert call(sink, lambda given: {"id": [], "p": np.empty((0, 3))}) == []
    assert call(sink, lambda given: iter(())) == []


def test_kept_columns_do_not_hide_the_receipts_own(sink: Sink) -> None:
    rows = call(sink, lambda given: {**given, "p": np.ones((6, 3)), "uri": ["mine"] * 6}, key="own/{id}")
    assert {row["kept_uri"] for row in rows} == {"mine"}
    assert all(Path(row["uri"]).exists() for row in rows)


# -- what is wrong is said before it is written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "key", "error", "match"),
    [
        ({"p": np.ones((6, 2, 3))}, "case_id", ConfigError, r"'case_id'.*'p' \(float64, 2x3 a row\).*'id' \(int64\)"),
        ({"p": np.ones((12, 3))}, "id", ConfigError, "12 rows for 6"),
        ({"half": np.arange(6) // 2, "p": np.ones((6, 3))}, "half", DuplicateKeyError, "'0'"),
        ({"name": ["../up"] * 6, "p": np.ones((6, 3))}, "{name}{id}", InvalidKeyError, r"\.\./up"),
        ({"p": np.array(["text"] * 6)}, "id", ConfigError, "nothing to save"),
        ({"p": 3.0}, "id", ConfigError, "one value a row"),
        (None, "id", ConfigError, "NoneType"),
    ],
    ids=["no key", "rows of nobody", "twice", "key", "nothing", "scalar", "none"],
)
def test_a_wrong_output_is_refused_by_name(sink: Sink, output: Any, key: str, error: Any, match: str) -> None:
    before = sink.status().decided
    with pytest.raises(error, match=match):
        call(sink, lambda given: output, key=key)
    assert sink.status().decided == before


def test_one_key_in_two_outputs_of_one_call_is_refused(sink: Sink) -> None:
    def model(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for _ in range(2):
            yield {"id": given["id"], "p": np.ones((6, 3))}

    with pytest.raises(DuplicateKeyError, match="'twice/0'"):
        call(sink, model, key="twice/{id}")


def test_an_output_that_cannot_be_committed_is_named(sink: Sink) -> None:
    call(sink, lambda given: {**given, "p": np.ones((6, 3))}, key="taken/{id}")
    with pytest.raises(SinkError, match=r"taken/3\.pt/x"):
        call(sink, lambda given: {"id": [3], "p": np.ones((1, 3))}, {"id": np.array([3])}, key="taken/{id}.pt/x")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"key": "{id"}, "template"),
        ({"columns": 3}, "columns must be"),
        ({"compute": ray.data.TaskPoolStrategy(size=1)}, "TaskPoolStrategy"),
        ({"model": 3}, "the model must be"),
        ({"model": object()}, "the model must be"),
        ({"ds": [1, 2]}, "must be a ray.data.Dataset"),
    ],
    ids=["key", "columns", "tasks", "a number", "an object", "a list"],
)
def test_wrong_arguments_are_refused_at_once(sink: Sink, arguments: Any, match: str) -> None:
    before = sink.status().unfinished
    given = {"ds": cases(8), "model": doubling(), "key": "id", **arguments}
    with pytest.raises(ConfigError, match=match):
        sink.map_batches(given.pop("ds"), given.pop("model"), **given)
    assert sink.status().unfinished == before


def failing(sink: Sink, model: Any, error: type[Exception], match: str, ds: Any = None, key: str = "id") -> None:
    with pytest.raises(error, match=match):
        within(120, lambda: sink.run(cases(8, blocks=8) if ds is None else ds, model, key=key))


def test_a_key_column_that_the_model_changes_is_refused(sink: Sink) -> None:
    def model(given: dict[str, Any]) -> dict[str, Any]:
        return {"id": given["id"] + 6, "p": np.ones((len(given["id"]), 3))}

    failing(sink, model, ConfigError, "a name of its own", key="changed/{id}")


def test_two_rows_under_one_key_are_found_before_the_model_runs(sink: Sink) -> None:
    ds = ray.data.from_items([{"name": f"n{i % 7}"} for i in range(8)], override_num_blocks=4)
    failing(sink, lambda given: 1 / 0, DuplicateKeyError, "'n0'", ds, key="name")


def test_two_rows_of_different_batches_under_one_key_are_found_by_their_source(sink: Sink) -> None:
    def model(given: dict[str, Any]) -> dict[str, Any]:
        return {"name": [f"n{i % 7}" for i in given["id"]], "p": np.ones((len(given["id"]), 3))}

    failing(sink, model, DuplicateKeyError, "sources/n0", key="sources/{name}")


def test_an_error_of_the_model_comes_out_with_its_text(sink: Sink) -> None:
    def model(given: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("the model's own")

    failing(sink, model, Exception, "the model's own", key="broken/{id}")
