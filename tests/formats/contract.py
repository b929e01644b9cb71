"""What every format must do, once for all of them."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_sink.append_file import append_file
from ray_sink.config import SaveFormat
from ray_sink.errors import UnsupportedValueError
from ray_sink.formats import Format, by_suffix, resolve, values
from ray_sink.formats.base import Value
from ray_sink.formats.loading import load
from tests.formats.strategies import bits, filled, names, tensors

EVERYWHERE = [
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz]
# inherited tests run once for each class, which is what is meant; two busy cores are no reason to fail
of_each_format = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.differing_executors])


def encoded(file_format: Format, value: Value) -> bytes:
    """As the Writer does it, both into a local temp and straight through."""
    file_format.check(value)
    file = io.BytesIO()
    file_format.encode(values.to_host(value), file)
    appended = bytearray()
    through = append_file(appended.extend)
    file_format.encode(values.to_host(value), through)
    through.flush()
    assert appended == file.getvalue()
    return file.getvalue()


def same(one: Value, other: Value) -> bool:
    """The same shape of value, the same names, the same bits."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and bits(one) == bits(other)
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            return False
        return {n: bits(t) for n, t in one.items()} == {n: bits(t) for n, t in other.items()}
    return [bits(t) for t in one] == [bits(t) for t in other]


class FormatContract:
    """Inherit it, and say what the format can hold."""

    save_format: ClassVar[SaveFormat]
    dtypes: ClassVar[Sequence[torch.dtype]]
    refused: ClassVar[Sequence[torch.dtype]]
    holds_many: ClassVar[bool] = True
    refused_names: ClassVar[frozenset[str]] = frozenset()

    @property
    def format(self) -> Format:
        return resolve(self.save_format)

    def as_read(self, tensor: Tensor) -> Tensor:
        """What a tensor comes back as."""
        return tensor

    def read_elsewhere(self, path: Path) -> Value:
        """Read the file with the tool that everyone else has: a tensor, or a mapping by the names in the file."""
        raise NotImplementedError

    def elsewhere(self, value: Value) -> Value:
        """What `read_elsewhere` gives for `value`."""
        return value

    def expected(self, value: Value) -> Value:
        return values.mapped(value, self.as_read)

    def round_trip(self, value: Value) -> Value:
        return self.format.decode(io.BytesIO(encoded(self.format, value)))

    def some_value(self, seed: int = 0) -> Value:
        first = filled(torch.float32, (3, 5), seed)
        return {"u": first, "p/q": filled(torch.int64, (2,), seed)} if self.holds_many else first

    @of_each_format
    @given(data=st.data())
    def test_a_tensor_of_any_dtype_shape_and_stride_comes_back(self, data: st.DataObject) -> None:
        tensor = data.draw(tensors(self.dtypes))
        assert same(self.round_trip(tensor), self.expected(tensor))

    @of_each_format
    @given(data=st.data())
    def test_a_mapping_with_any_names_comes_back(self, data: st.DataObject) -> None:
        held = names.filter(lambda name: name not in self.refused_names)
        value = data.draw(st.dictionaries(held, tensors(self.dtypes), max_size=4))
        if not self.holds_many:
            with pytest.raises(UnsupportedValueError, match="SPLIT"):
                self.format.check(value)
            return
        assert same(self.round_trip(value), self.expected(value))

    @of_each_format
    @given(data=st.data())
    def test_a_sequence_comes_back_as_a_list(self, data: st.DataObject) -> None:
        value = data.draw(st.lists(tensors(self.dtypes), max_size=12))
        if not self.holds_many:
            with pytest.raises(UnsupportedValueError, match="SPLIT"):
                self.format.check(value)
            return
        back = self.round_trip(tuple(value))
        assert isinstance(back, list)
        assert same(back, self.expected(value))

    def test_every_dtype_that_is_promised_is_held(self) -> None:
        for dtype in self.dtypes:
            for shape in [(), (0,), (3, 0, 2), (2, 3)]:
                tensor = filled(dtype, shape)
                assert same(self.round_trip(tensor), self.expected(tensor)), dtype

    def test_a_dtype_it_cannot_hold_is_a_type_error_that_names_it(self) -> None:
        for dtype in self.refused:
            tensor = torch.zeros(16, dtype=torch.uint8).view(dtype)
            with pytest.raises(TypeError, match=str(dtype)) as caught:
                self.format.check(tensor)
            assert isinstance(caught.value, UnsupportedValueError)

    def test_other_tools_read_the_file(self, tmp_path: Path) -> None:
        value: Value
        for value in [filled(torch.float32, (2, 3)), self.some_value(), filled(torch.complex64, ())]:
            path = tmp_path / f"x{self.format.suffix}"
            path.write_bytes(encoded(self.format, value))
            assert same(self.read_elsewhere(path), self.elsewhere(value))

    def test_load_knows_the_format_by_its_suffix(self, tmp_path: Path) -> None:
        path = tmp_path / f"x{self.format.suffix}"
        path.write_bytes(encoded(self.format, self.some_value()))
        assert by_suffix(path).name == self.format.name
        assert same(load(path), self.expected(self.some_value()))
        assert same(load(path, save_format=self.save_format), self.expected(self.some_value()))

    def test_bytes_depend_on_the_value_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another temp name, another day, another memory, another process's interned names: the same bytes."""
        one, two = tmp_path / "one.tmp", tmp_path / "a-longer-name.tmp"
        value = self.some_value()
        with open(one, "wb") as file:
            self.format.encode(value, file)
        monkeypatch.setattr(time, "time", lambda: 2e9)
        again = values.snapshot(self.some_value())
        if isinstance(again, dict):
            again = {"".join(list(name)): tensor for name, tensor in again.items()}
        with open(two, "wb") as file:
            self.format.encode(again, file)
        assert one.read_bytes() == two.read_bytes()

    def test_bytes_do_not_tell_who_shares_memory_with_whom(self) -> None:
        if not self.holds_many:
            return
        shared = torch.arange(6.0)
        aliased = {"cpu": shared, "b": shared, "c": shared.view(torch.int32), "storage": shared[2:4]}
        apart = {"".join(list(name)): tensor.clone() for name, tensor in aliased.items()}
        assert encoded(self.format, aliased) == encoded(self.format, apart)

    def test_a_view_saves_only_what_it_shows(self) -> None:
        whole = torch.zeros(1_000_000)
        assert len(encoded(self.format, whole[10:20])) < 10_000
        assert len(encoded(self.format, whole[::100_000])) < 10_000

    def test_what_requires_grad_or_is_a_parameter_is_saved_as_a_plain_tensor(self) -> None:
        parameter = torch.nn.Parameter(torch.arange(4.0))
        for tensor in (parameter, parameter * 2):
            back = self.round_trip(tensor)
            assert isinstance(back, Tensor)
            assert type(back) is Tensor
            assert not back.requires_grad
            assert same(back, tensor.detach())

    def test_bfloat16_is_either_held_or_noted(self) -> None:
        tensor = filled(torch.bfloat16, (8,))
        notes = self.format.encode(tensor, io.BytesIO())
        back = self.round_trip(tensor)
        assert isinstance(back, Tensor)
        assert bool(notes) == (back.dtype != torch.bfloat16)
        if notes:
            assert notes == ["bfloat16 stored as float32"]
        if notes and self.holds_many:
            assert self.format.encode({"x": tensor, "y": tensor.float()}, io.BytesIO()) == [
                "x: bfloat16 stored as float32"
            ]

    @pytest.mark.parametrize(
        "value",
        [
            None,
            1.0,
            "text",
            "",
            b"",
            {1: torch.zeros(1)},
            {"x": 1.0},
            {"x": [torch.zeros(1)]},
            [1, 2],
            [None],
            torch.zeros(1).numpy(),
            {torch.zeros(1)},
            torch.eye(2).to_sparse(),
            torch.zeros(1, device="meta"),
            (tensor for tensor in [torch.zeros(1)]),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_anything_else_is_a_type_error(self, value: Value) -> None:
        with pytest.raises(TypeError) as caught:
            self.format.check(value)
        assert isinstance(caught.value, UnsupportedValueError)

    def test_a_format_travels_by_pickle(self) -> None:
        there = pickle.loads(pickle.dumps(self.format))
        assert encoded(there, self.some_value()) == encoded(self.format, self.some_value())

    def test_read_only_memory_is_not_written_to(self) -> None:
        memory = mmap.mmap(-1, 64, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says, once, that the memory is not writable
            tensor = torch.frombuffer(memory, dtype=torch.float32)
        assert same(self.round_trip(tensor), torch.zeros(16))

    def test_no_pickle_is_executed(self, tmp_path: Path) -> None:
        """A file from elsewhere that holds a program is refused."""
        proof = tmp_path / "executed"
        path = tmp_path / f"x{self.format.suffix}"
        path.write_bytes(self.with_pickle(_Program(str(proof))))
        with pytest.raises(Exception):  # noqa: B017, PT011 - each library has its own
            load(path)
        assert not proof.exists()

    def with_pickle(self, program: object) -> bytes:
        """A file of this format with a pickled object in it."""
        return pickle.dumps(program)


class _Program:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (self.path,)
