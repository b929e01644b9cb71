"""Each format under the contract, and what is its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_sink.config import SaveFormat
from ray_sink.errors import ConfigError, UnsupportedValueError
from ray_sink.formats import FORMATS, Format, by_suffix, resolve, values
from ray_sink.formats.base import Value
from ray_sink.formats.loading import load
from tests.formats.contract import EVERYWHERE, FLOAT8, FormatContract, encoded, of_each_format, same
from tests.formats.strategies import bits, filled, names, tensors

BUILT_IN = sorted(SaveFormat)
OTHER_FLOATS = [torch.float8_e8m0fnu, torch.float4_e2m1fn_x2]


def from_numpy(loaded: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def pickle_in(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        return members.read("archive/data.pkl")


class TestPytorch(FormatContract):
    save_format = SaveFormat.PYTORCH_PT
    dtypes = (
        *EVERYWHERE,
        torch.complex128,
        torch.complex32,
        *FLOAT8,
        *OTHER_FLOATS,
    )
    refused = (torch.bits8,)

    def read_elsewhere(self, path: Path) -> Value:
        loaded: Value = torch.load(path, weights_only=True)
        return loaded

    def with_pickle(self, program: object) -> bytes:
        file = io.BytesIO()
        torch.save(program, file)
        return file.getvalue()

    @of_each_format
    @given(data=st.data())
    def test_the_pickle_is_the_one_that_torch_would_write(self, data: st.DataObject) -> None:
        tensor = tensors(self.dtypes)
        value = data.draw(st.one_of(tensor, st.lists(tensor, max_size=12), st.dictionaries(names, tensor, max_size=4)))
        plain = values.snapshot(value)  # torch would keep shared storages and strides as they are
        theirs = io.BytesIO()
        torch.save(plain, theirs)
        assert pickle_in(encoded(self.format, plain)) == pickle_in(theirs.getvalue())

    def test_every_member_has_its_crc_and_elements_are_aligned(self) -> None:
        data = encoded(self.format, {"a": filled(torch.uint8, (5,)), "b": filled(torch.float32, (3, 7))})
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert all(info.CRC for info in archive.infolist())
            for number, elements in enumerate([filled(torch.uint8, (5,)), filled(torch.float32, (3, 7))]):
                contents = archive.read(f"archive/data/{number}")
                assert contents == bytes(values.raw_bytes(elements))
                assert data.index(contents) % 64 == 0
            damaged = bytearray(data)
            damaged[data.index(contents)] ^= 1
        with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
            assert archive.testzip() == "archive/data/1"

    def test_torch_maps_the_file_into_memory(self, tmp_path: Path) -> None:
        from torch.utils.serialization import config

        path = tmp_path / "x.pt"
        path.write_bytes(encoded(self.format, self.some_value()))
        assert same(torch.load(path, weights_only=True, mmap=True), self.some_value())
        with config.patch({"load.calculate_storage_offsets": True}):  # type: ignore[attr-defined]
            assert same(torch.load(path, weights_only=True, mmap=True), self.some_value())

    def test_a_mapping_keeps_its_order(self) -> None:
        back = self.round_trip({"z": torch.zeros(1), "a": torch.ones(1)})
        assert list(back) == ["z", "a"]

    def test_any_mapping_is_saved_as_a_dict(self) -> None:
        from types import MappingProxyType

        assert type(self.round_trip(MappingProxyType({"x": torch.zeros(1)}))) is dict

    def test_names_of_any_str_class_are_plain_afterwards(self) -> None:
        back = self.round_trip({np.str_("x"): torch.zeros(1)})
        assert [type(name) for name in back] == [str]


class TestNpz(FormatContract):
    save_format = SaveFormat.NUMPY_NPZ
    dtypes = (
        *EVERYWHERE,
        torch.complex128,
    )
    refused = (
        torch.complex32,
        torch.bits8,
        *FLOAT8,
        *OTHER_FLOATS,
    )

    def as_read(self, tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    def read_elsewhere(self, path: Path) -> Value:
        with np.load(path, allow_pickle=False) as loaded:
            return from_numpy(loaded)

    def elsewhere(self, value: Value) -> Value:
        return {"arr_0": value} if isinstance(value, Tensor) else value

    def with_pickle(self, program: object) -> bytes:
        file = io.BytesIO()
        np.savez(file, x=np.array([program], dtype=object))
        return file.getvalue()

    @given(value=st.dictionaries(names, st.integers(0, 255), max_size=6))
    def test_numpy_itself_finds_every_tensor_by_its_name(self, value: dict[str, int]) -> None:
        file = io.BytesIO(encoded(self.format, {name: torch.tensor(number) for name, number in value.items()}))
        with np.load(file, allow_pickle=False) as loaded:
            assert {name: int(loaded[name]) for name in value} == value
            assert list(loaded.files) == list(value)

    def test_names_that_numpy_cannot_tell_apart_are_refused(self) -> None:
        tensors = {name: torch.zeros(1) for name in ("x", "x.npy", "x.npy.npy")}
        with pytest.raises(UnsupportedValueError, match=r"x\.npy"):
            self.format.check(tensors)

    @pytest.mark.parametrize("name", ["a\0b", "n" * 70_000, "\ud800"], ids=["NUL", "long", "surrogate"])
    def test_names_that_a_zip_file_cannot_hold_are_refused(self, name: str) -> None:
        with pytest.raises(UnsupportedValueError):
            self.format.check({name: torch.zeros(1)})

    def test_members_have_fixed_dates_and_are_not_compressed(self) -> None:
        with zipfile.ZipFile(io.BytesIO(encoded(self.format, [torch.zeros(2)]))) as archive:
            (info,) = archive.infolist()
        assert info.filename == "arr_0.npy"
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        assert info.compress_type == zipfile.ZIP_STORED

    def test_files_that_numpy_wrote_are_read(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.arange(3), b=np.arange(3, dtype=">i4"))
        assert same(load(tmp_path / "x.npz"), {"a": torch.arange(3), "b": torch.arange(3, dtype=torch.int32)})

    def test_arrays_that_no_tensor_holds_say_so(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", a=np.array(["text"]))
        with pytest.raises(UnsupportedValueError, match="'a'"):
            load(tmp_path / "x.npz")


class TestNpy(FormatContract):
    save_format = SaveFormat.NUMPY_NPY
    dtypes = (
        *EVERYWHERE,
        torch.complex128,
    )
    refused = (
        torch.complex32,
        torch.bits8,
        *FLOAT8,
        *OTHER_FLOATS,
    )
    holds_many = False

    def as_read(self, tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    def read_elsewhere(self, path: Path) -> Value:
        return torch.from_numpy(np.load(path, allow_pickle=False))

    def with_pickle(self, program: object) -> bytes:
        file = io.BytesIO()
        np.save(file, np.array([program], dtype=object))
        return file.getvalue()

    def test_the_bytes_are_those_of_numpy(self) -> None:
        tensor = filled(torch.float64, (3, 4))
        file = io.BytesIO()
        np.save(file, tensor.numpy())
        assert encoded(self.format, tensor) == file.getvalue()

    def test_a_large_bfloat16_is_turned_into_float32_part_by_part(self) -> None:
        tensor = torch.arange(9_000_000).to(torch.bfloat16)
        assert same(self.round_trip(tensor), tensor.float())


class TestSafetensors(FormatContract):
    save_format = SaveFormat.SAFETENSORS
    refused_names = frozenset({"__metadata__"})
    dtypes = (
        *EVERYWHERE,
        *FLOAT8,
    )
    refused = (
        torch.complex128,
        torch.complex32,
        torch.bits8,
        *OTHER_FLOATS,
    )

    def read_elsewhere(self, path: Path) -> Value:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping

    def elsewhere(self, value: Value) -> Value:
        return {"tensor": value} if isinstance(value, Tensor) else value

    def test_the_order_of_a_mapping_does_not_show(self) -> None:
        value = {"b": torch.zeros(1), "a": torch.ones(2), "c": torch.ones(1, dtype=torch.float64)}
        assert encoded(self.format, value) == encoded(self.format, dict(reversed(value.items())))

    def test_elements_are_aligned_and_readers_find_their_mark(self) -> None:
        data = encoded(self.format, {"b": torch.zeros(3, dtype=torch.uint8), "a": torch.zeros(2, dtype=torch.float64)})
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert length % 8 == 0
        assert header["__metadata__"]["format"] == "pt"
        assert header["a"]["data_offsets"] == [0, 16]
        assert header["b"]["data_offsets"] == [16, 19]

    def test_the_formats_own_name_is_refused(self) -> None:
        with pytest.raises(UnsupportedValueError, match="__metadata__"):
            self.format.check({"__metadata__": torch.zeros(1)})

    def test_what_the_library_writes_is_read(self, tmp_path: Path) -> None:
        import safetensors.torch

        value = {"x": torch.arange(3.0)}
        safetensors.torch.save_file(value, tmp_path / "x.safetensors")
        assert same(load(tmp_path / "x.safetensors"), value)


class Text:
    """Somebody's own format."""

    name = "text"
    suffix = ".txt"

    def check(self, value: Value) -> None:
        values.check_value(value)

    def encode(self, value: Value, file: BinaryIO) -> list[str]:
        return []

    def decode(self, file: BinaryIO) -> Value:
        return torch.zeros(0)


def test_there_is_a_factory_for_every_save_format() -> None:
    assert set(FORMATS) == set(SaveFormat)
    for save_format in SaveFormat:
        assert resolve(save_format).name == save_format.value
        assert isinstance(resolve(save_format), Format)
        assert resolve(save_format.value).suffix == resolve(save_format).suffix  # type: ignore[arg-type]


def test_ones_own_format_is_taken_as_it_is() -> None:
    mine = Text()
    assert id(resolve(mine)) == id(mine)


@pytest.mark.parametrize(
    "wrong", ["jpeg", None, 3, Text, object()], ids=["an unknown name", "None", "a number", "a class", "an object"]
)
def test_what_is_no_format_is_refused_with_the_choices(wrong: Format) -> None:
    with pytest.raises(ConfigError, match=r"SaveFormat\.SAFETENSORS"):
        resolve(wrong)


@pytest.mark.parametrize("suffix", ["", "txt", ".", ".a/b", ". ", None])
def test_a_suffix_that_cannot_end_a_file_name_is_refused(suffix: str) -> None:
    mine = Text()
    mine.suffix = suffix
    with pytest.raises(ConfigError, match="suffix"):
        resolve(mine)


def test_a_suffix_that_nobody_has_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"\.safetensors"):
        by_suffix("x.jpeg")


def test_importing_the_formats_the_writer_and_async_writer_loads_nothing_heavy() -> None:
    code = "import sys, ray_sink.formats.loading, ray_sink.async_writer; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "ray", "safetensors"} & set(loaded)


def test_a_snapshot_holds_what_shows_and_nothing_else() -> None:
    whole = torch.arange(1_000_000.0)
    for view in (whole[5:9], whole[::250_000], torch.zeros(1).expand(4), torch.zeros(2, 2).t()):
        copy = values.snapshot(view)
        assert isinstance(copy, Tensor)
        assert bits(copy) == bits(view)
        assert copy.untyped_storage().nbytes() == 16
        assert copy.data_ptr() != view.data_ptr()


def test_what_is_on_the_host_already_is_not_copied() -> None:
    tensor = torch.arange(4.0)
    there = values.to_host({"x": tensor})
    assert isinstance(there, dict)
    assert there["x"].data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("save_format", BUILT_IN)
def test_the_bound_for_budgets_is_above_what_is_written(save_format: SaveFormat) -> None:
    for tensor in (torch.zeros(10_000, dtype=torch.bfloat16), torch.zeros(0), torch.zeros((1,) * 40)):
        assert len(encoded(resolve(save_format), tensor)) <= values.encoded_bound_bytes(tensor)
    if save_format is not SaveFormat.NUMPY_NPY:
        many = {f"{number}-{'é' * 300}": torch.zeros(1) for number in range(100)}
        assert len(encoded(resolve(save_format), many)) <= values.encoded_bound_bytes(many)
