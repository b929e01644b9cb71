"""What can be an output, and its way to plain host memory.

torch is imported inside the functions: the modules that use this one stay light to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from ray_sink.errors import UnsupportedValueError

if TYPE_CHECKING:
    from torch import Tensor

    from ray_sink.formats.base import Value

STEP_BYTES: Final = 16 * 2**20
"""Elements are written so many at a time."""


def check_value(value: object) -> None:
    """Check that `value` is a Tensor, a Mapping[str, Tensor] or a Sequence[Tensor] of dense tensors with data.

    Raises:
        UnsupportedValueError: it is not; a TypeError that says what was found, and where.
    """
    from torch import Tensor

    if isinstance(value, Tensor):
        _check_tensor(value, "")
    elif isinstance(value, Mapping):
        for name, tensor in value.items():
            if not isinstance(name, str):
                raise UnsupportedValueError(
                    f"names of tensors must be str, got {type(name).__name__} ({name!r:.60}): use str(name)"
                )
            _check_tensor(tensor, f"[{name!r:.60}]")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        for index, tensor in enumerate(value):
            _check_tensor(tensor, f"[{index}]")
    else:
        raise UnsupportedValueError(
            "an output must be a torch.Tensor, a mapping of str to tensors or a sequence of tensors,"
            f" got {type(value).__module__}.{type(value).__qualname__}{_advice(value)}"
        )


def _check_tensor(tensor: object, where: str) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedValueError(
            f"value{where} must be a torch.Tensor, got"
            f" {type(tensor).__module__}.{type(tensor).__qualname__}{_advice(tensor)}"
        )
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedValueError(
            f"value{where} is a {'nested' if tensor.is_nested else tensor.layout} tensor; make it dense first:"
            " .to_dense() for a sparse one, .to_padded_tensor(...) for a nested one"
        )
    if tensor.is_quantized:
        raise UnsupportedValueError(
            f"value{where} is quantized ({dtype_name(tensor)}); save .int_repr() or .dequantize()"
        )
    if tensor.is_meta:
        raise UnsupportedValueError(f"value{where} is on the meta device and has no data to save")


def _advice(value: object) -> str:
    if type(value).__module__.partition(".")[0] == "numpy":
        return ": use torch.from_numpy or torch.as_tensor"
    if isinstance(value, bool | int | float | complex):
        return ": use torch.tensor"
    return ""


def tensors_of(value: Value) -> Iterator[tuple[str | None, Tensor]]:
    """Each tensor with its name: None for a single tensor, the index as text in a sequence."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, Sequence):
        yield from ((str(index), tensor) for index, tensor in enumerate(value))
    else:
        yield None, value


def mapped(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A value of the same shape, in a new plain dict or list, with every tensor changed."""
    if isinstance(value, Mapping):
        return {name: change(tensor) for name, tensor in value.items()}
    if isinstance(value, Sequence):
        return [change(tensor) for tensor in value]
    return change(value)


def to_host(value: Value) -> Value:
    """`value` as plain, detached, contiguous tensors on the CPU; what already is so is not copied."""
    return mapped(value, _host)


def snapshot(value: Value) -> Value:
    """As `to_host`, in memory that nobody else holds: what shows is copied, not the storage behind a view."""
    return mapped(value, _own)


def _host(tensor: Tensor) -> Tensor:
    return _plain(tensor).cpu().resolve_conj().resolve_neg().contiguous()


def _own(tensor: Tensor) -> Tensor:
    import torch

    copied: Tensor = _plain(tensor).to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copied.resolve_conj().resolve_neg()


def _plain(tensor: Tensor) -> Tensor:
    from torch import Tensor

    detached = tensor.detach()
    return detached if type(detached) is Tensor else detached.as_subclass(Tensor)


def size_bytes(value: Value) -> int:
    """Bytes that the elements take, each shown one counted."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(value))


def encoded_bound_bytes(value: Value) -> int:
    """More bytes than `value` takes in a file of any built-in format."""
    total = 4096  # names, shapes, headers
    for name, tensor in tensors_of(value):
        element_bytes = 4 if dtype_name(tensor) == "bfloat16" else tensor.element_size()
        total += tensor.numel() * element_bytes + 1024 + 8 * len(name or "")
    return total


def dtype_name(tensor: Tensor) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def check_dtypes(value: Value, dtypes: frozenset[str], what: str, advice: str) -> None:
    """Refuse dtypes that are not among `dtypes`.

    Raises:
        UnsupportedValueError: with the first tensor that has another one, by name.
    """
    for name, tensor in tensors_of(value):
        if dtype_name(tensor) not in dtypes:
            where = "the tensor" if name is None else f"tensor {name!r:.60}"
            raise UnsupportedValueError(f"{what} cannot hold {tensor.dtype} ({where}); {advice}")


def check_names(value: Value, what: str) -> None:
    """Refuse names that no UTF-8 file can hold.

    Raises:
        UnsupportedValueError: a name has a lone surrogate.
    """
    for name, _ in tensors_of(value):
        try:
            (name or "").encode()
        except UnicodeEncodeError:
            raise UnsupportedValueError(f"{what} cannot hold the name {name!r:.60}: it has a lone surrogate") from None


def flat_bytes(tensor: Tensor) -> Tensor:
    """The elements of a contiguous CPU tensor in memory order, as uint8 of shape (bytes,), without a copy."""
    import torch

    # a dimension of size 0 or 1 may have any stride in a contiguous tensor, and `view` then refuses another dtype
    line = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return line.view(torch.uint8)


def raw_bytes(tensor: Tensor) -> memoryview:
    """As `flat_bytes`, as a buffer."""
    raw: memoryview = flat_bytes(tensor).numpy().data
    return raw


def write_elements(tensor: Tensor, file: BinaryIO) -> None:
    """Write the elements of a contiguous CPU tensor in memory order, without a copy."""
    whole = raw_bytes(tensor)
    for start in range(0, len(whole), STEP_BYTES):
        file.write(whole[start : start + STEP_BYTES])


def numbered(index: int) -> str:
    """The name that formats of named tensors give the `index`-th one of a sequence, as numpy does."""
    return f"arr_{index}"
