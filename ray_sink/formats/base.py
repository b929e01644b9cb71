"""What a format is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Value: TypeAlias = "Tensor | Mapping[str, Tensor] | Sequence[Tensor]"
"""What an output can be; a string at run time, so that torch need not be loaded."""


@runtime_checkable
class Format(Protocol):
    """How a value becomes bytes in a file, and comes back.

    The order of calls:

    1. `check`, in the producer, before a ticket is issued; cheap, looks at types, dtypes and shapes only.
    2. `encode`, in a writer, once for each file of each attempt, into an empty local file open for writing and
       seeking. It may be repeated with the same value: the bytes must depend on the value alone.
    3. `decode`, in whoever loads the output.

    A Format travels to the writers by pickle, so it is a small picklable object. In `encode`, a mapping arrives as a
    dict in the order it had, a sequence as a list, and every tensor as a plain dense one on the CPU, detached and
    contiguous. Tensors may be views of larger or read-only memory: save what shows, and do not write into them.

    Attributes:
        name: identifies the format in journals and manifests; a resumed run must have the same.
        suffix: file name suffix with its dot, such as ``".pt"``.
        appends: optional; True says that `encode` only writes, front to back, and never seeks or reads. Its files then
            need no local temp where the staging folder is on the same filesystem.

    Whether a mapping's order is part of its value is the format's to say: ``.pt`` and ``.npz`` keep it, safetensors
    has an order of its own.
    """

    name: str
    suffix: str

    def check(self, value: Value) -> None:
        """Raise `ray_sink.errors.UnsupportedValueError` (a TypeError) if the format cannot hold `value`."""

    def encode(self, value: Value, file: BinaryIO) -> Sequence[str]:
        """Write `value` to `file`.

        Returns:
            Notes for the receipt on what differs from the value, such as ``"x: bfloat16 stored as float32"``.
        """

    def decode(self, file: BinaryIO) -> Value:
        """Read back what `encode` wrote, without executing pickles."""
