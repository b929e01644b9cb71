"""``.npz``: named arrays in a zip file, as numpy reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from ray_sink.errors import UnsupportedValueError
from ray_sink.formats import arrays, values
from ray_sink.formats.stored_zip import StoredZip

if TYPE_CHECKING:
    from torch import Tensor

    from ray_sink.formats.base import Value

_SUFFIX: Final = ".npy"
_TENSOR: Final = b"ray_sink: one tensor"
_SEQUENCE: Final = b"ray_sink: a sequence"


class NpzFormat:
    """A mapping under its own names and in its own order; a sequence as ``arr_0``, ``arr_1``, …; a tensor as ``arr_0``.

    These are the names that ``numpy.load(allow_pickle=False)`` shows. The zip file's comment, which numpy does not
    look at, says which of the three it was, so that `decode` gives back the same. Nothing is compressed.
    """

    name = "numpy_npz"
    suffix = ".npz"
    appends = True

    def check(self, value: Value) -> None:
        """See `ray_sink.formats.base.Format.check`."""
        arrays.check(value, "a .npz file")
        values.check_names(value, "a .npz file")
        if isinstance(value, Mapping):
            _members(value)

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        """See `ray_sink.formats.base.Format.encode`."""
        if isinstance(value, Mapping):
            comment, tensors = b"", _members(value)
        else:
            comment = _SEQUENCE if isinstance(value, Sequence) else _TENSOR
            each = value if isinstance(value, Sequence) else [value]
            tensors = {values.numbered(index) + _SUFFIX: tensor for index, tensor in enumerate(each)}
        archive = StoredZip(file)
        for member, tensor in tensors.items():
            archive.add(member, functools.partial(arrays.write, tensor))
        archive.close(comment)
        return arrays.notes_of(value)

    def decode(self, file: BinaryIO) -> Value:
        """See `ray_sink.formats.base.Format.decode`."""
        with np.load(file, allow_pickle=False) as archive:
            comment: bytes = archive.zip.comment
            tensors = {name: arrays.to_tensor(archive[name], name) for name in archive.files}
        if comment == _TENSOR:
            return tensors[values.numbered(0)]
        if comment == _SEQUENCE:
            return [tensors[values.numbered(index)] for index in range(len(tensors))]
        return tensors


def _members(value: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of their members.

    numpy finds ``x`` as member ``x.npy``, and takes a member's own name, too: with tensors ``x`` and ``x.npy``, the
    first would hide the second. It then becomes a member without a suffix, which numpy reads as well.

    Raises:
        UnsupportedValueError: a name that zip files cannot hold, or one that numpy could not tell from another.
    """
    members = {}
    for name, tensor in value.items():
        if "\0" in name or len(name.encode()) > 0xFFFF - len(_SUFFIX):
            raise UnsupportedValueError(
                f"a .npz file cannot hold the name {name!r:.60}: it has a NUL or is longer than 65,531 bytes"
            )
        member = name + _SUFFIX
        if member in value:
            if name.endswith(_SUFFIX):
                raise UnsupportedValueError(
                    f"numpy.load could not tell {name!r:.60} from {member!r:.60} and {name[: -len(_SUFFIX)]!r:.60}:"
                    " rename one of them, or use SaveFormat.SAFETENSORS"
                )
            member = name
        members[member] = tensor
    return members
