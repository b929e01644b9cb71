"""``.safetensors``: https://github.com/huggingface/safetensors#format.

Written here, read by the library: the library's own writer wants the whole file in memory or a path, and leaves the
order of several metadata entries to chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from ray_sink.errors import UnsupportedValueError
from ray_sink.formats import values

if TYPE_CHECKING:
    from torch import Tensor

    from ray_sink.formats.base import Value

DTYPES: Final[Mapping[str, str]] = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""Name in the header by name in torch: what the library's torch reader knows."""

TENSOR: Final = "tensor"
_METADATA: Final = "__metadata__"
_KIND: Final = "ray_sink"
_MAX_HEADER_BYTES: Final = 100_000_000  # the library's limit


class SafetensorsFormat:
    """A mapping under its own names; a sequence as ``arr_0``, ``arr_1``, …; a single tensor as ``tensor``.

    The order is the format's: larger elements first, then by name. A metadata entry, ``ray_sink``, says which of the
    three the value was, so that `decode` gives back the same; ``format`` says ``pt``, which other readers look for.
    """

    name = "safetensors"
    suffix = ".safetensors"
    appends = True

    def check(self, value: Value) -> None:
        """See `ray_sink.formats.base.Format.check`."""
        values.check_value(value)
        values.check_names(value, "a .safetensors file")
        values.check_dtypes(value, frozenset(DTYPES), "a .safetensors file", "convert it, or use SaveFormat.PYTORCH_PT")
        if isinstance(value, Mapping) and _METADATA in value:
            raise UnsupportedValueError(
                f"a .safetensors file cannot hold the name {_METADATA!r}: it is the format's own"
            )
        names = (name or TENSOR for name, _ in values.tensors_of(value))
        if sum(128 + 6 * len(name) for name in names) > _MAX_HEADER_BYTES < len(_header(_named(value), "sequence")):
            raise UnsupportedValueError(
                "names and shapes take more than the 100 MB that a .safetensors header may have"
            )

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        """See `ray_sink.formats.base.Format.encode`. Memory order goes straight to the file."""
        kind = "mapping" if isinstance(value, Mapping) else "sequence" if isinstance(value, Sequence) else "tensor"
        tensors = _named(value)
        header = _header(tensors, kind)
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for _, tensor in tensors:
            file.write(values.raw_bytes(tensor))
        return ()

    def decode(self, file: BinaryIO) -> Value:
        """See `ray_sink.formats.base.Format.decode`."""
        import safetensors.torch

        data = file.read()
        tensors = safetensors.torch.load(data)  # checks the header
        length = int.from_bytes(data[:8], "little")
        kind = json.loads(data[8 : 8 + length]).get(_METADATA, {}).get(_KIND)
        if kind == "tensor":
            return tensors[TENSOR]
        if kind == "sequence":
            return [tensors[values.numbered(index)] for index in range(len(tensors))]
        return tensors


def _named(value: Value) -> list[tuple[str, Tensor]]:
    """The tensors in the order of the file."""
    if isinstance(value, Mapping):
        named = list(value.items())
    elif isinstance(value, Sequence):
        named = [(values.numbered(index), tensor) for index, tensor in enumerate(value)]
    else:
        named = [(TENSOR, value)]
    return sorted(named, key=lambda item: (-item[1].element_size(), item[0]))


def _header(tensors: Sequence[tuple[str, Tensor]], kind: str) -> bytes:
    entries: dict[str, object] = {_METADATA: {"format": "pt", _KIND: kind}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + values.size_bytes(tensor)
        entries[name] = {
            "dtype": DTYPES[values.dtype_name(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)
