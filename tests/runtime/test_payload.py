"""Outputs as plain memory and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ray_sink.errors import UnsupportedValueError
from ray_sink.runtime.payload import (
    as_tensor,
    copied,
    pack,
    pack_columns,
    pack_rows,
    packed_bytes,
    taken_apart,
    unpack,
)

DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5)])
def test_every_dtype_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    (back,) = unpack(pack_rows([tensor]))
    assert isinstance(back, torch.Tensor)
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back.to(torch.complex128), tensor.to(torch.complex128))


def test_odd_tensors_are_what_they_show() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    odd = [
        base.T,
        base[:, ::2],
        base[1],
        torch.ones(1).expand(5),
        base.requires_grad_(),
        torch.rand(3).to(torch.cfloat),
    ]
    odd.append(odd[-1].conj())
    for tensor, back in zip(odd, unpack(pack_rows(odd)), strict=True):
        assert torch.equal(back, tensor.detach().resolve_conj())  # type: ignore[arg-type]


def _unpacked(values: list[Any]) -> list[Any]:
    return list(unpack(pack_rows(values)))


def test_structures_come_back_in_order() -> None:
    values: list[Any] = [{"b": torch.ones(1), "a": torch.zeros(2)}, [torch.ones(3), torch.zeros(1)], torch.ones(4)]
    mapping, sequence, tensor = _unpacked(values)
    assert list(mapping) == ["b", "a"]
    assert [len(item) for item in sequence] == [3, 1]
    assert len(tensor) == 4


def test_columns_become_a_row_for_each_output() -> None:
    columns: dict[str | None, torch.Tensor] = {
        "u": torch.arange(6).reshape(3, 2),
        "v": torch.tensor([7, 8, 9], dtype=torch.bfloat16),
    }
    rows: list[Any] = list(unpack(pack_columns(columns)))
    assert [row["v"].item() for row in rows] == [7, 8, 9]
    assert rows[1]["u"].tolist() == [2, 3]
    bare: list[Any] = list(unpack(pack_columns({None: columns["u"]})))
    assert [row.tolist() for row in bare] == [[0, 1], [2, 3], [4, 5]]


def test_a_copy_has_memory_of_its_own() -> None:
    tensor = torch.ones(4)
    packed = pack_rows([tensor])
    mine = copied(packed)
    tensor.zero_()
    assert unpack(mine)[0].sum() == 4  # type: ignore[union-attr]
    assert packed_bytes(mine) == 16


@pytest.mark.parametrize(
    "array", [np.arange(4)[::-1], np.arange(4, dtype=">f4"), np.zeros((2, 0)), np.float32(3) * np.ones(())]
)
def test_numpy_arrays_of_any_layout_are_taken(array: np.ndarray) -> None:
    assert as_tensor(array, "x").tolist() == array.tolist()


@pytest.mark.parametrize("value", ["text", None, 3, np.array(["a"]), np.array([object()])])
def test_what_is_no_tensor_is_named(value: object) -> None:
    with pytest.raises(UnsupportedValueError, match="column 'x'"):
        as_tensor(value, "column 'x'")


@pytest.mark.parametrize(
    "batch",
    [
        {None: torch.rand(3, 2)},
        {"u": torch.rand(3, 2), "v": torch.arange(3)},
        [torch.ones(1), {"b": torch.ones(2), "a": torch.zeros(3)}, [torch.ones(4), torch.ones(5)], [], {}],
    ],
)
def test_a_batch_that_was_taken_apart_is_put_together_as_it_was(batch: Any) -> None:
    layout, tensors = taken_apart(batch)
    again = layout.pack([tensor.clone() for tensor in tensors])
    assert repr(again) == repr(pack(batch))
