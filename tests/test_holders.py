"""What may be copied beside the model: memory that nobody else can write to, and no other."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ray_sink.runtime.holders import columns_of_ours, is_ours_alone

Maker = Callable[[], Any]


def of(maker: Maker) -> bool:
    """What is said of an array that only a list holds, as far as `maker` has not given it to others."""
    made = [maker()]
    return is_ours_alone(made, 0)


def in_columns(maker: Maker) -> frozenset[str]:
    made = [maker()]
    return columns_of_ours(made)


def network(*shape: int) -> torch.Tensor:
    computed: torch.Tensor = torch.nn.Linear(12, 12)(torch.ones(12))
    return computed.view(*shape)


OURS: dict[str, Maker] = {
    "array": lambda: np.ones(4),
    "view of an array": lambda: np.ones((4, 4))[None, 1:].T,
    "tensor": lambda: torch.ones(4),
    "view of a tensor": lambda: torch.ones(4, 4)[1:],
    "tensor's array": lambda: torch.ones(4).numpy(),
    "view of a tensor's array": lambda: torch.ones(4)[1:].numpy()[None],
    "computed with grad": lambda: network(3, 4),
    "computed, detached, as an array": lambda: network(3, 4).detach().numpy()[0],
    "list": lambda: [np.ones(3), torch.ones(2)],
    "tuple": lambda: (np.ones(3)[1:], np.ones(2)),
}


@pytest.mark.parametrize("name", OURS)
def test_what_a_model_has_made_anew_is_ours(name: str) -> None:
    assert of(OURS[name])


def test_what_is_computed_in_inference_mode_is_ours() -> None:
    with torch.inference_mode():
        assert of(lambda: network(3, 4)[0])
        assert of(lambda: network(3, 4)[0].numpy())


ARRAY, TENSOR = np.ones((4, 4)), torch.ones(4, 4)
HELD: dict[str, Maker] = {
    "array": lambda: ARRAY,
    "view of an array": lambda: ARRAY[:2],
    "view of a view": lambda: ARRAY[:3][:2],
    "tensor": lambda: TENSOR,
    "view of a tensor": lambda: TENSOR[:2],
    "reshaped": lambda: TENSOR.reshape(2, 8),
    "detached": lambda: TENSOR.detach(),
    "tensor's array": lambda: TENSOR.numpy(),
    "array's tensor": lambda: torch.from_numpy(ARRAY),
    "array's tensor's array": lambda: torch.from_numpy(ARRAY).numpy()[:2],
    "tensor over DLPack": lambda: torch.utils.dlpack.from_dlpack(TENSOR),
    "array over DLPack": lambda: np.from_dlpack(TENSOR),
    "list with one that is held": lambda: [np.ones(3), ARRAY],
}


@pytest.mark.parametrize("name", HELD)
def test_what_somebody_holds_is_not_ours(name: str) -> None:
    assert not of(HELD[name])


KEEPERS: dict[str, tuple[Maker, Callable[[Any], Any]]] = {
    "array itself": (lambda: np.ones(4), lambda array: array),
    "view of it": (lambda: np.ones(4), lambda array: array[:2]),
    "memoryview": (lambda: np.ones(4), memoryview),
    "tensor of it": (lambda: np.ones(4), torch.from_numpy),
    "base": (lambda: np.ones(4)[:2], lambda view: view.base),
    "sibling": (lambda: torch.ones(4)[:2], lambda view: view[:1]),
    "alias": (lambda: torch.ones(4), lambda tensor: tensor.detach()),
    "array of it": (lambda: torch.ones(4), lambda tensor: tensor.numpy()),
    "storage": (lambda: torch.ones(4), lambda tensor: tensor.untyped_storage()),
    "DLPack": (lambda: torch.ones(4), torch.utils.dlpack.from_dlpack),
    "base of a view": (lambda: torch.ones(4)[:2], lambda view: view._base),
    "tensor behind an array": (lambda: torch.ones(4).numpy(), lambda array: array.base),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_what_a_model_keeps_a_part_of_is_not_ours(name: str) -> None:
    make, keep = KEEPERS[name]
    kept = []

    def made() -> Any:
        value = make()
        kept.append(keep(value))
        return value

    assert not of(made)
    kept.clear()


def test_memory_that_neither_numpy_nor_torch_has_taken_is_not_ours() -> None:
    assert not of(lambda: torch.ones(4).share_memory_())
    assert not of(lambda: torch.frombuffer(bytearray(16), dtype=torch.float32))
    assert not of(lambda: np.frombuffer(mmap.mmap(-1, 16), np.float32))
    assert not of(lambda: np.frombuffer(bytes(16), np.float32))


def test_what_is_no_plain_array_is_not_ours() -> None:
    assert not of(lambda: np.array([np.ones(2), np.ones(3)], dtype=object))
    assert not of(lambda: torch.nn.Parameter(torch.ones(2)))
    assert not of(lambda: np.ma.masked_array(np.ones(2)))
    assert not of(lambda: ["text"])
    assert not of(lambda: None)


def test_columns_are_told_apart() -> None:
    assert in_columns(lambda: {"fresh": np.ones(2), "held": ARRAY, "name": ["a", "b"]}) == {"fresh"}
    assert in_columns(lambda: np.ones(2)) == {"data"}
    assert in_columns(lambda: ARRAY) == frozenset()
    both = np.ones(4)
    assert in_columns(lambda: {"one": both[:2], "other": both[2:]}) == frozenset()


def test_columns_of_a_mapping_that_somebody_holds_are_not_ours() -> None:
    kept = {"p": np.ones(2)}
    assert in_columns(lambda: kept) == frozenset()
    assert in_columns(lambda: dict(kept)) == frozenset()


def test_where_torch_does_not_tell_nothing_of_its_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert not of(lambda: torch.ones(2))
    monkeypatch.undo()
    monkeypatch.delattr(torch, "_lazy_clone")
    assert not of(lambda: torch.ones(2))
    assert of(lambda: np.ones(2))
