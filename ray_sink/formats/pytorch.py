"""``.pt``: what `torch.save` writes and ``torch.load(weights_only=True)`` reads.

The archive is written here, by the layout that torch documents, since `torch.save` computes its CRCs in software, over
all of a tensor before it writes any of it: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import torch
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3  # these names stand in every .pt file

from ray_sink.formats import values
from ray_sink.formats.stored_zip import StoredZip

if TYPE_CHECKING:
    from torch import Tensor

    from ray_sink.formats.base import Value

DTYPES: Final = frozenset(
    {
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    }
)


_ALIGNMENT: Final = 64
# dtypes that are not here came to torch after it gave up storages with a type
_TYPED: Final[Mapping[torch.dtype, type]] = {
    torch.bool: torch.BoolStorage,
    torch.uint8: torch.ByteStorage,
    torch.int8: torch.CharStorage,
    torch.int16: torch.ShortStorage,
    torch.int32: torch.IntStorage,
    torch.int64: torch.LongStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage,
}


class PytorchFormat:
    """A tensor as a tensor, a mapping as a dict in its own order, a sequence as a list.

    Tensors are saved as plain ones without grad, each with storage of its own that spans what shows: tensors that share
    memory are saved twice, and come back apart.
    """

    name = "pytorch_pt"
    suffix = ".pt"
    appends = True

    def check(self, value: Value) -> None:
        """See `ray_sink.formats.base.Format.check`."""
        values.check_value(value)
        values.check_names(value, "a .pt file")
        values.check_dtypes(value, DTYPES, "a .pt file", "convert it, for example with .to(torch.int8)")

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        """See `ray_sink.formats.base.Format.encode`."""
        tensors: list[_Tensor] = []

        def found(tensor: Tensor) -> Any:
            tensors.append(_Tensor(tensor, len(tensors)))
            return tensors[-1]

        program = _pickled(values.mapped(value, found))
        archive = StoredZip(file, alignment=_ALIGNMENT)

        def add(name: str, write: Callable[[BinaryIO], object]) -> None:
            archive.add(f"archive/{name}", write)

        add("data.pkl", lambda member: member.write(program))
        add("byteorder", lambda member: member.write(sys.byteorder.encode()))
        for tensor in tensors:
            add(f"data/{tensor.storage.number}", functools.partial(values.write_elements, tensor.elements))
        add("version", lambda member: member.write(b"3\n"))
        archive.close()
        return ()

    def decode(self, file: BinaryIO) -> Value:
        """See `ray_sink.formats.base.Format.decode`. Tensors come back on the CPU."""
        return cast("Value", torch.load(file, map_location="cpu", weights_only=True))


class _Storage:
    """Stands for what is kept beside the pickle."""

    def __init__(self, tensor: Tensor, number: int) -> None:
        kind = _TYPED.get(tensor.dtype)
        elements = tensor.numel() * (1 if kind else tensor.element_size())
        self.number = number
        self.id = ("storage", kind or torch.UntypedStorage, str(number), "cpu", elements)


class _Tensor:
    """Stands for a tensor that has a storage to itself; pickled as `torch.Tensor` would be."""

    def __init__(self, elements: Tensor, number: int) -> None:
        self.elements = elements
        self.storage = _Storage(elements, number)

    def __reduce__(self) -> tuple[object, ...]:
        shape = tuple(self.elements.shape)
        hooks: OrderedDict[str, object] = OrderedDict()
        made_of = (self.storage, 0, shape, _strides(shape), False, hooks)
        if self.elements.dtype in _TYPED:
            return _rebuild_tensor_v2, made_of
        return _rebuild_tensor_v3, (*made_of, self.elements.dtype)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.id if isinstance(obj, _Storage) else None


def _pickled(value: object) -> bytes:
    if isinstance(value, Mapping):
        # pickle writes a reference for a str *object* that it has met, be it one of torch's: names are made anew,
        # so that the bytes don't tell which of them happened to be interned
        value = {name.encode().decode(): tensor for name, tensor in value.items()}
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a contiguous tensor; a dimension of size 0 or 1 may have had any."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
