"""From values to files: what AsyncWriter and the writer actors have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Generic

from ray_sink.config import DictMode
from ray_sink.errors import InvalidKeyError, SinkError, StagingError, UnsupportedValueError
from ray_sink.formats import values
from ray_sink.formats.base import Format
from ray_sink.keys import check_key
from ray_sink.publishing import (
    DecidedPublishing,
    FileSlot,
    FileT,
    Landed,
    Prepared,
    Publishing,
    ReplacePublishing,
    ResultT,
    about,
)

if TYPE_CHECKING:
    from ray_sink.formats.base import Value

__all__ = [
    "DecidedPublishing",
    "Landed",
    "Output",
    "Piece",
    "Publishing",
    "ReplacePublishing",
    "Writer",
    "check_output",
    "pieces_of",
]

_SMALL_BYTES = 128 * 2**10


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One try at one output.

    Attributes:
        key: the user's key.
        value: what to save; any strides, any device. It is not written to.
        attempt: id of this try, unique for ever, of characters that are safe in file names.
        source: identity of the input row, where it is known.
    """

    key: str
    value: Value
    attempt: str
    source: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One file of an output, before it is written.

    Attributes:
        path: relative path with its suffix.
        value: what goes into the file.
        name: the tensor's name or index, where `DictMode.SPLIT` took the value apart.
    """

    path: str
    value: Value
    name: str | None = None


def pieces_of(key: str, value: Value, file_format: Format, dict_mode: DictMode) -> list[Piece]:
    """The files that `value` becomes under `key`.

    Raises:
        InvalidKeyError: the key, or a key with a name of the value, cannot name a file.
        UnsupportedValueError: there is nothing to write (an empty value with `DictMode.SPLIT`).
    """
    suffix = file_format.suffix
    if dict_mode is not DictMode.SPLIT or not isinstance(value, Mapping | Sequence):
        return [Piece(check_key(key, suffix=suffix) + suffix, value)]
    check_key(key)
    pieces = [
        Piece(check_key(f"{key}_{name}", suffix=suffix) + suffix, tensor, name)
        for name, tensor in values.tensors_of(value)
    ]
    if not pieces:
        raise UnsupportedValueError(
            f"key {key!r:.120}: an empty {type(value).__name__} has no tensor to write with DictMode.SPLIT"
        )
    path, count = Counter(piece.path for piece in pieces).most_common(1)[0]
    if count > 1:
        raise InvalidKeyError(f"key {key!r:.120}: {count} of its tensors lead to {path!r}", key=key)
    return pieces


def check_output(key: object, value: object, file_format: Format, dict_mode: DictMode) -> list[Piece]:
    """All that can be told of an output before it is accepted: types, key, names, dtypes. Looks at no data.

    Args:
        key: the user's key.
        value: a Tensor, a Mapping[str, Tensor] or a Sequence[Tensor].
        file_format: what it will be written with.
        dict_mode: one file, or one for each tensor.

    Returns:
        The files that it becomes.

    Raises:
        UnsupportedValueError: the value is none of these, or the format cannot hold it; a TypeError.
        InvalidKeyError: the key, or a key with a name of the value, cannot name a file; a ValueError.
    """
    values.check_value(value)
    pieces = pieces_of(check_key(key, suffix=""), value, file_format, dict_mode)  # type: ignore[arg-type]  # checked
    for piece in pieces:
        file_format.check(piece.value)
    return pieces


@dataclass(slots=True, eq=False)
class _File(Generic[FileT]):
    """One file on its way."""

    slot: FileSlot
    encode: Callable[[BinaryIO], None]
    notes: list[str]
    made: FileT | Exception | None = None


@dataclass(slots=True, eq=False)
class _Encoded(Generic[FileT]):
    """An output on its way: its files, or why it has none."""

    output: Output
    files: list[_File[FileT]] = field(default_factory=list)
    refused: SinkError | None = None

    @property
    def error(self) -> Exception | None:
        """The first thing that went wrong."""
        return self.refused or next((file.made for file in self.files if isinstance(file.made, Exception)), None)

    @property
    def made(self) -> tuple[FileT, ...]:
        """What is written of it, in order."""
        return tuple(file.made for file in self.files if file.made is not None and not isinstance(file.made, Exception))

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for file in self.files for note in file.notes)


class Writer(Generic[FileT, ResultT]):
    """Writes batches of outputs with one format and one publish policy. Safe under several calling threads.

    Args:
        file_format: how values become bytes.
        dict_mode: one file for a mapping or sequence, or one for each tensor.
        publishing: where the bytes go and how they get their final names.
        threads: files of a batch that are encoded and synced at a time; 1 takes the calling thread.
    """

    def __init__(
        self, file_format: Format, dict_mode: DictMode, publishing: Publishing[FileT, ResultT], *, threads: int = 1
    ) -> None:
        self.file_format = file_format
        self.dict_mode = dict_mode
        self._publishing = publishing
        self._appends = bool(getattr(file_format, "appends", False))
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ray_sink-encode") if threads > 1 else None

    def __enter__(self) -> Writer[FileT, ResultT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. What is being written is finished first."""
        if self._pool is not None:
            self._pool.shutdown()

    def write_batch(self, outputs: Sequence[Output]) -> list[ResultT | SinkError]:
        """Write `outputs`.

        Returns:
            For each output, in order, what the policy makes of it (a `Receipt` from `DecidedPublishing`, a `Landed`
            from `ReplacePublishing`), or the error that names its key and has what was raised as its cause. One
            output's failure does not touch the others.

        Raises:
            Exception: what the policy's callables raised that is no SinkError. Nothing is known of the batch then.
        """
        batch = [self._taken_apart(output) for output in outputs]
        self._prepare(batch)
        for encoded in batch:
            if encoded.error is not None:
                self._publishing.discard(encoded.made)
        ready = [encoded for encoded in batch if encoded.error is None]
        published = iter(
            self._publishing.publish(
                [Prepared(e.output.key, e.output.attempt, e.output.source, e.made, e.notes) for e in ready]
            )
            if ready
            else []
        )
        return [
            next(published) if (error := encoded.error) is None else self._failure(encoded.output.key, error)
            for encoded in batch
        ]

    def _taken_apart(self, output: Output) -> _Encoded[FileT]:
        encoded = _Encoded[FileT](output)
        try:
            pieces = pieces_of(output.key, output.value, self.file_format, self.dict_mode)
        except SinkError as error:
            encoded.refused = error
        else:
            encoded.files = [self._file(output, number, piece) for number, piece in enumerate(pieces)]
        return encoded

    def _file(self, output: Output, number: int, piece: Piece) -> _File[FileT]:
        notes: list[str] = []

        def encode(file: BinaryIO) -> None:
            told = self.file_format.encode(values.to_host(piece.value), file)
            # all of them anew: a file that failed is encoded again
            notes[:] = told if piece.name is None else (f"{piece.name}: {note}" for note in told)

        bound_bytes = values.encoded_bound_bytes(piece.value)
        return _File(FileSlot(piece.path, output.attempt, number, bound_bytes, appends=self._appends), encode, notes)

    def _prepare(self, batch: Sequence[_Encoded[FileT]]) -> None:
        if self._pool is None:
            for encoded in batch:
                for file in encoded.files:
                    file.made = self._made(file)
                    if isinstance(file.made, Exception):
                        break  # the rest of it is not begun
            return
        groups = self._groups([file for encoded in batch for file in encoded.files])
        for group, run in [(group, self._pool.submit(self._all_made, group)) for group in groups]:
            try:
                made = run.result()
            except StagingError as error:
                made = [error] * len(group)
            for file, result in zip(group, made, strict=True):
                file.made = result

    def _groups(self, files: Sequence[_File[FileT]]) -> list[list[_File[FileT]]]:
        """Files that a thread writes one after the other: to hand one over takes as long as to write a small one."""
        small = [file for file in files if file.slot.bound_bytes <= _SMALL_BYTES]
        each = -(-len(small) // self._threads)
        return [[file] for file in files if file.slot.bound_bytes > _SMALL_BYTES] + [
            small[start : start + each] for start in range(0, len(small), each or 1)
        ]

    def _all_made(self, group: Sequence[_File[FileT]]) -> list[FileT | Exception]:
        return self._publishing.together(lambda: [self._made(file) for file in group])

    def _made(self, file: _File[FileT]) -> FileT | Exception:
        try:
            return self._publishing.prepare(file.slot, file.encode)
        except Exception as error:  # noqa: BLE001 - anyone's format may raise anything; it becomes an outcome
            return error

    def _failure(self, key: str, error: Exception) -> SinkError:
        if isinstance(error, SinkError):
            return about(key, error)
        if isinstance(error, OSError):
            failure: SinkError = StagingError(f"key {key!r} could not be written: {error}")
        else:
            failure = SinkError(
                f"key {key!r} could not be encoded as {self.file_format.name}: {type(error).__name__}: {error}"
            )
        failure.__cause__ = error
        return failure
