"""Keys, tensors and kept columns out of whatever a model returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

from ray_sink import Receipt, State
from ray_sink.errors import ConfigError, DuplicateKeyError, InvalidKeyError
from ray_sink.records import FileRecord
from ray_sink.runtime.batches import Batch
from ray_sink.runtime.columns import check_columns, kept_columns, select
from ray_sink.runtime.keying import KeyTemplate, missing_error, require_unique
from ray_sink.runtime.receipts import SCHEMA, receipt_table

TENSORS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)


def keys(template: str, **columns: Any) -> list[str]:
    return KeyTemplate.parse(template).keys_of(Batch(columns))


@pytest.mark.parametrize(
    "column",
    [
        ["a", "b"],
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        pa.array(["a", "b"]),
        pd.Series(["a", "b"]),
    ],
    ids=["list", "numpy", "objects", "arrow", "pandas"],
)
def test_a_key_column_may_hold_strings_in_any_form(column: Any) -> None:
    assert keys("case_id", case_id=column) == ["a", "b"]


@pytest.mark.parametrize("column", [[7, 8], np.array([7, 8]), torch.tensor([7, 8])], ids=["list", "numpy", "torch"])
def test_a_key_column_may_hold_integers(column: Any) -> None:
    assert keys("id", id=column) == ["7", "8"]


def test_a_template_formats_its_columns() -> None:
    made = keys("{case_id}/{step:04d}-{t:.2f}", case_id=["a", "b"], step=np.array([3, 12]), t=torch.tensor([0.5, 1.0]))
    assert made == ["a/0003-0.50", "b/0012-1.00"]


@pytest.mark.parametrize("text", ["", None, 3, "{", "{}", "{0}", "{a.b}", "{a[0]}", "{{a}}", "x}"])
def test_what_is_no_key_template_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError):
        KeyTemplate.parse(text)


def test_a_key_of_floats_needs_to_be_told_how_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"key='\{t:\.3f\}'"):
        keys("t", t=np.array([0.1]))


@pytest.mark.parametrize("value", [None, float("nan")], ids=["none", "nan"])
def test_a_null_key_is_refused_by_row(value: Any) -> None:
    with pytest.raises(InvalidKeyError, match="row 1"):
        keys("{case_id}", case_id=np.array(["a", value], dtype=object))


def test_a_key_of_tensors_is_refused() -> None:
    with pytest.raises(ConfigError, match="2x2 a row"):
        keys("p", p=TENSORS)


def test_a_format_that_does_not_suit_the_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not suit"):
        keys("{case_id:04d}", case_id=["a"])


def test_a_missing_key_column_is_named_beside_those_there_are() -> None:
    template = KeyTemplate.parse("{case_id}/{step}")
    error = missing_error(
        template, template.missing(["step"]), "the batch", Batch({"step": [1], "p": TENSORS[:1]}).describe()
    )
    assert "'case_id'" in str(error)
    assert "'p' (float32, 2x2 a row)" in str(error)


def test_keys_that_occur_twice_are_named() -> None:
    with pytest.raises(DuplicateKeyError, match="'a'") as caught:
        require_unique(["a", "b", "a"], "the batch")
    assert caught.value.keys == ("a",)


@pytest.mark.parametrize("columns", [3, [], "", ["a", "a"], ["a", 3]])
def test_what_names_no_columns_is_refused(columns: Any) -> None:
    with pytest.raises(ConfigError):
        check_columns(columns)


def test_one_named_column_is_saved_as_tensors() -> None:
    saved = select("p", Batch({"p": TENSORS, "q": TENSORS}), {})
    assert saved.value is TENSORS


def test_several_named_columns_are_saved_as_mappings() -> None:
    score = np.arange(3)
    saved = select(("p", "score"), Batch({"p": TENSORS, "score": score}), {})
    assert saved.value == {"p": TENSORS, "score": score}


def test_without_names_what_the_model_added_or_replaced_is_saved() -> None:
    before = {"x": TENSORS, "y": TENSORS + 1}
    output = Batch({"x": TENSORS, "y": TENSORS + 2, "p": torch.ones(3, 4), "score": np.zeros(3), "name": ["a"] * 3})
    assert select(None, output, before).names == ("y", "p")


def test_without_names_a_single_tensor_column_is_saved_as_a_tensor() -> None:
    assert select(None, Batch({"x": TENSORS, "p": TENSORS + 1}), {"x": TENSORS}).names == ("p",)
    assert isinstance(select(None, Batch({"p": TENSORS}), {}).value, np.ndarray)


def test_a_model_that_adds_no_tensor_is_told_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"columns='…'.*'score' \(float64\)"):
        select(None, Batch({"x": TENSORS, "score": np.zeros(3)}), {"x": TENSORS})


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'q'"):
        select("q", Batch({"p": TENSORS}), {})


def test_a_column_of_strings_is_no_tensor() -> None:
    with pytest.raises(ConfigError, match="no tensor"):
        select("name", Batch({"name": ["a", "b"]}), {})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool])
def test_torch_tensors_of_any_dtype_go_through_as_they_are(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 2).to(dtype)
    assert select("p", Batch({"p": tensor}), {}).value is tensor


def ragged(kind: str) -> Any:
    rows: list[Any] = [np.ones((2, length), dtype=np.float32) for length in (1, 2, 3)]
    if kind == "torch":
        return [torch.from_numpy(row) for row in rows]
    if kind == "lists":
        return pa.array([[1.0], [1.0, 2.0], []])
    held = np.empty(3, dtype=object)
    held[:] = rows
    return held


@pytest.mark.parametrize("kind", ["objects", "torch", "lists"])
def test_rows_of_different_shapes_are_saved_one_by_one(kind: str) -> None:
    value = select("p", Batch({"p": ragged(kind)}), {}).value
    assert isinstance(value, list)
    assert len({tuple(row.shape) for row in value}) == 3
    both = select(("p", "x"), Batch({"p": ragged(kind), "x": TENSORS}), {}).value
    assert both[2].keys() == {"p", "x"}


@pytest.mark.parametrize(
    "column",
    [
        TENSORS.tolist(),
        pa.array(TENSORS.tolist(), pa.list_(pa.list_(pa.float32()))),
        pa.array(TENSORS.tolist(), pa.list_(pa.list_(pa.float32(), 2), 2)),
        pd.Series(TENSORS.tolist()),
    ],
    ids=["lists", "arrow", "arrow of fixed lengths", "pandas"],
)
def test_lists_in_lists_are_tensors(column: Any) -> None:
    value = select("p", Batch({"p": column}), {}).value
    assert np.array_equal(np.stack(list(value)), TENSORS)
    assert not isinstance(column, pa.Array) or {row.dtype for row in value} == {np.dtype(np.float32)}


def test_lists_of_different_lengths_within_a_row_are_refused_by_row() -> None:
    for column in ([[[1.0, 2.0]], [[1.0, 2.0], [3.0]]], pa.array([[[1.0, 2.0]], [[1.0, 2.0], [3.0]]])):
        with pytest.raises(ConfigError, match=r"'p' holds lists of different lengths within row 1"):
            select("p", Batch({"p": column}), {})


def test_a_row_without_a_tensor_is_named() -> None:
    with pytest.raises(ConfigError, match="'p' holds a NoneType in row 1"):
        select("p", Batch({"p": [np.ones(2), None]}), {})
    with pytest.raises(ConfigError, match="'p' holds a dict in row 0"):
        select("p", Batch(pa.table({"p": [{"x": [1.0]}, {"x": [2.0]}]})), {})


def test_tensor_columns_of_different_shapes_are_read_as_tensors() -> None:
    rows = [np.ones((2, length), dtype=np.float32) for length in (1, 2, 3)]
    table = pa.table({"p": ArrowVariableShapedTensorArray.from_numpy(rows)})
    assert [row.shape for row in select("p", Batch(table), {}).value] == [(2, 1), (2, 2), (2, 3)]


def test_objects_that_are_tensors_keep_their_dtype() -> None:
    rows = [torch.ones(length, dtype=torch.bfloat16) for length in (1, 2, 3)]
    held = np.empty(3, dtype=object)
    for row, tensor in enumerate(rows):
        held[row] = tensor
    for column in (rows, held, pd.Series(rows)):
        assert [row.dtype for row in select("p", Batch({"p": column}), {}).value] == [torch.bfloat16] * 3


def test_arrow_tables_and_data_frames_are_read_as_tensors() -> None:
    table = pa.table({"p": ArrowTensorArray.from_numpy(TENSORS), "id": [1, 2, 3]})
    frame = pd.DataFrame({"p": list(TENSORS), "id": [1, 2, 3]})
    for batch in (Batch(table), Batch(frame)):
        value = select("p", batch, {}).value
        assert np.array_equal(np.stack(list(value)), TENSORS)
        assert KeyTemplate.parse("{id:02d}").keys_of(batch) == ["01", "02", "03"]


def test_a_bare_array_is_a_column_named_data() -> None:
    assert Batch(TENSORS).names == ["data"]


@pytest.mark.parametrize("returned", [None, 3, "text", [TENSORS]])
def test_what_is_no_batch_is_refused_by_type(returned: Any) -> None:
    with pytest.raises(ConfigError, match=type(returned).__name__):
        Batch(returned)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a': 1, 'b': 2"):
        Batch({"a": [1], "b": [1, 2]})


def test_numbers_strings_and_times_are_kept_and_nothing_big() -> None:
    output = Batch(
        {
            "p": TENSORS,
            "id": np.arange(3),
            "name": np.array(["a", None, "c"], dtype=object),
            "when": np.array(["2026-01-01"] * 3, dtype="datetime64[s]"),
            "loss": torch.ones(3),
            "raw": [b"x" * 1000] * 3,
            "objects": [{}, {}, {}],
        }
    )
    assert list(kept_columns(output, ["p"])) == ["id", "name", "when", "loss"]
    table = Batch(pa.table({"id": [1, None, 3], "raw": [b"", b"", b""], "many": [[1], [2], [3]], "ok": [True] * 3}))
    assert list(kept_columns(table, [])) == ["id", "ok"]


def test_receipts_are_rows_with_one_schema() -> None:
    file = FileRecord("a.pt", 10, "crc64nvme:0", uri="file:///a.pt")
    receipt = Receipt("a", "1", State.STAGED, (file, file))
    table = receipt_table([receipt], {"key": pa.array(["a"]), "bytes": pa.array([5]), "id": pa.array([7])})
    assert table.column_names == ["kept_bytes", "id", *SCHEMA.names]
    row = table.to_pylist()[0]
    assert (row["bytes"], row["uri"], row["uris"]) == (20, "file:///a.pt", ["file:///a.pt"] * 2)
