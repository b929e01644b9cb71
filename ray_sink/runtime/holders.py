"""Whether nobody else holds an array, so that nobody can write to it any more: it need not be copied at once.

CPython counts who holds an object, and torch who holds a storage. What we hold ourselves is counted in the same way
when this module is loaded, and taken off; where something cannot be told, somebody holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

import numpy as np
import torch


def _count(items: Any, place: Any) -> int:
    return sys.getrefcount(items[place])


def _count_base(array: np.ndarray) -> int:
    return sys.getrefcount(array.base)


def _count_shown(view: torch.Tensor) -> int:
    return sys.getrefcount(view._base)


def _storages(tensor: torch.Tensor) -> tuple[int, int]:
    """How many tensors share the storage, and how many Python objects name it; large where torch does not tell."""
    count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
    storage = tensor.untyped_storage()
    return sys.maxsize if count is None else count(storage._cdata), sys.getrefcount(storage)


def _is_torchs_own(tensor: torch.Tensor) -> bool:
    """Whether torch has allocated the memory: no array of numpy's, mapped file or other process has it, too.

    Nothing tells that, but copy-on-write is for such memory only.
    """
    try:
        torch._lazy_clone(tensor.detach())  # a name for the same memory, which is gone at once
    except (RuntimeError, AttributeError):
        return False
    return True


_IN_LIST: Final = _count([object()], 0)
_IN_DICT: Final = _count({"it": object()}, "it")
_AS_BASE: Final = _count_base(np.empty(2)[:1])
_AS_SHOWN: Final = _count_shown(torch.empty(2)[:1])
_SHARING, _NAMING = _storages(torch.empty(1))


def columns_of_ours(made: list[Any]) -> frozenset[str]:
    """Which columns of ``made[0]``, what a model returned, nobody else holds; a bare array is column ``"data"``.

    No variable may name it meanwhile.
    """
    if _count(made, 0) > _IN_LIST:
        return frozenset()
    if isinstance(made[0], dict):
        return frozenset(name for name in made[0] if is_ours_alone(made[0], name))
    return frozenset(["data"] if is_ours_alone(made, 0) else [])


def is_ours_alone(items: list[Any] | dict[Any, Any], place: Any) -> bool:
    """Whether ``items[place]``, an array, tensor, list or tuple of them, is held by `items` and by nobody else.

    No variable may name it meanwhile. Views count as holding what they show. Memory that neither numpy nor torch has
    taken for itself may be anybody's: shared memory, mapped files, foreign buffers.
    """
    if _count(items, place) > (_IN_DICT if isinstance(items, dict) else _IN_LIST):
        return False
    value = items[place]
    if isinstance(value, list | tuple):
        rows: Any = value
        return all(_is_array(row) for row in rows) and all(_row_is_ours_alone(rows, row) for row in range(len(rows)))
    return _is_array(value) and _memory_is_ours_alone(value)


def _row_is_ours_alone(rows: Sequence[Any], row: int) -> bool:
    return _count(rows, row) <= _IN_LIST and _memory_is_ours_alone(rows[row])


def _is_array(value: object) -> TypeGuard[np.ndarray | torch.Tensor]:
    return type(value) in (np.ndarray, torch.Tensor)


def _memory_is_ours_alone(value: np.ndarray | torch.Tensor) -> bool:
    """Whether an array that nobody else holds shows memory that nobody else sees."""
    while isinstance(value, np.ndarray):
        if value.dtype == object:
            return False
        if value.base is None:
            return bool(value.flags.owndata)
        if _count_base(value) > _AS_BASE or not _is_array(value.base):
            return False
        value = value.base
    sharing, naming = _storages(value)
    if value._base is not None:
        if _count_shown(value) > _AS_SHOWN:
            return False
        sharing -= 1
    return sharing <= _SHARING < sys.maxsize and naming <= _NAMING and _is_torchs_own(value)
