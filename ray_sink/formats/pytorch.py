"""``.pt``: what `torch.save` writes and ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import torch

from ray_sink.formats import values

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
        """See `ray_sink.formats.base.Format.encode`. To a file object: a path's name would go into the archive."""
        try:
            torch.save(_plain(value), file)
        except RuntimeError as error:
            # torch's archive writer trips again while it unwinds, and hides what the disk said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        return ()

    def decode(self, file: BinaryIO) -> Value:
        """See `ray_sink.formats.base.Format.decode`. Tensors come back on the CPU."""
        return cast("Value", torch.load(file, map_location="cpu", weights_only=True))


def _plain(value: Value) -> Value:
    seen: set[int] = set()
    plain = values.mapped(value, lambda tensor: _alone(tensor, seen))
    if isinstance(plain, Mapping):
        # pickle writes a reference for a str *object* that it has met, be it inside torch.save: names are made anew,
        # so that the bytes don't tell which of them happened to be interned
        return {name.encode().decode(): tensor for name, tensor in plain.items()}
    return plain


def _alone(tensor: Tensor, seen: set[int]) -> Tensor:
    """The same elements in a storage that holds nothing else, without a copy where that is possible."""
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    if tensor.data_ptr() in seen:
        # torch.save refuses two dtypes at one address
        return tensor.clone(memory_format=torch.contiguous_format)
    seen.add(tensor.data_ptr())
    return torch.from_numpy(values.flat_bytes(tensor).numpy()).view(tensor.dtype).reshape(tensor.shape)
