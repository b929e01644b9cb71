"""AsyncWriter: outputs to files in the background, on one machine, without a cluster."""

from __future__ import annotations

import queue
import threading
import traceback
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING

from ray_sink.config import DictMode, SaveFormat
from ray_sink.errors import ConfigError, SinkClosedError, SinkError
from ray_sink.formats import Format, resolve, values
from ray_sink.ordering import PathOrder, Turn
from ray_sink.writer import Output, ReplacePublishing, Writer, check_output

if TYPE_CHECKING:
    from ray_sink.formats.base import Value


class _Job(Turn):
    """A background write in its place among the writes to the same paths."""

    def __init__(self, paths: Iterable[str], output: Output) -> None:
        super().__init__(paths)
        self.output = output


class AsyncWriter:
    """Writes tensors to files on a thread pool; the caller goes on.

    When `write` returns, the caller may overwrite its tensors. Files land by temp file and ``os.replace``: a reader
    sees the old file or the new one, whole, and so does whoever looks after a crash of the process; nothing is
    fsynced. Writes to one path land in the order of the calls. Any number of threads may write at once.

    ::

        with AsyncWriter("out") as writer:
            for name, batch in loader:
                writer.write(name, model(batch))

    Attributes:
        root: the folder below which all files go, absolute.
        save_format: as given.
        dict_mode: as given.
        max_inflight: as given.
        small_sync_bytes: as given.
        upload_queue: as given.
        pool: the threads that write.

    Args:
        out_root: folder for the files; made when it is missing.
        save_format: a `SaveFormat`, or anyone's own `Format`.
        dict_mode: one file for a mapping or sequence, or one for each of its tensors.
        workers: background threads.
        max_inflight: background writes that may be pending; `write` waits for one to finish at that number.
        small_sync_bytes: outputs with fewer bytes of elements are written in the calling thread.
        upload_queue: gets the absolute path of every finished file, a `pathlib.Path`; a full queue is waited for.

    Raises:
        ConfigError: an argument is wrong, or `out_root` cannot be made.
    """

    def __init__(
        self,
        out_root: str | PathLike[str],
        save_format: SaveFormat | Format = SaveFormat.PYTORCH_PT,
        dict_mode: DictMode = DictMode.SINGLE,
        workers: int = 4,
        max_inflight: int = 256,
        small_sync_bytes: int = 64_000,
        upload_queue: queue.Queue[Path] | None = None,
    ) -> None:
        _check_count("workers", workers, 1)
        _check_count("max_inflight", max_inflight, 1)
        _check_count("small_sync_bytes", small_sync_bytes, 0)
        self.save_format = save_format
        self._format = resolve(save_format)
        try:
            self.dict_mode = DictMode(dict_mode)
        except ValueError:
            raise ConfigError(f"dict_mode must be DictMode.SINGLE or DictMode.SPLIT, got {dict_mode!r}") from None
        if upload_queue is not None and not callable(getattr(upload_queue, "put", None)):
            raise ConfigError(f"upload_queue must be a queue.Queue, got {type(upload_queue).__name__}")
        self.max_inflight = max_inflight
        self.small_sync_bytes = small_sync_bytes
        self.upload_queue = upload_queue
        self.root = _made(out_root)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="AsyncWriter")
        self._writer = Writer(self._format, self.dict_mode, ReplacePublishing(self.root))
        self._slots = threading.Semaphore(max_inflight)
        self._order = PathOrder()
        self._state = threading.Condition()
        self._pending = 0
        self._closed = False
        self._errors: list[BaseException] = []

    def write(self, relative_path_no_ext: str | PurePath, to_save: Value) -> None:
        """Write `to_save`, in the background unless it is small.

        Args:
            relative_path_no_ext: path below the root, without extension: ``"runs/sample_0001"``.
            to_save: a Tensor, a Mapping[str, Tensor] or a Sequence[Tensor], of any strides on any device.

        Raises:
            UnsupportedValueError: it is none of these, or the format cannot hold it: a TypeError, before anything is
                scheduled.
            InvalidKeyError: the path cannot be used: a ValueError, before anything is scheduled.
            SinkClosedError: the writer is closed.
            OSError: a small output could not be written. What background writes raise, `close` raises.
        """
        key = relative_path_no_ext.as_posix() if isinstance(relative_path_no_ext, PurePath) else relative_path_no_ext
        self._check_open()
        paths = [piece.path for piece in check_output(key, to_save, self._format, self.dict_mode)]
        if values.size_bytes(to_save) < self.small_sync_bytes:
            self._write_here(Turn(paths), Output(key, to_save, uuid.uuid4().hex))
        else:
            self._write_behind(key, to_save, paths)

    def close(self) -> None:
        """Wait for everything that was accepted and end the threads. A second call does nothing.

        Raises:
            Exception: what the background writes raised: the error itself if there is one, an ExceptionGroup of all
                if there are several. Each has a note that names the path.
        """
        with self._state:
            self._closed = True
            self._state.wait_for(lambda: self._pending == 0)
        self.pool.shutdown()
        with self._state:
            errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} outputs could not be written", errors)

    def __enter__(self) -> AsyncWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close. An exception of the body goes first; what the writes raised is then told in its notes."""
        try:
            self.close()
        except BaseException as failed:
            if error is None:
                raise
            each = failed.exceptions if isinstance(failed, BaseExceptionGroup) else (failed,)
            for one in each:
                error.add_note(f"AsyncWriter.close(): {type(one).__name__}: {one}")
            if not isinstance(failed, Exception):
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise SinkClosedError("this AsyncWriter is closed; make a new one")

    def _write_here(self, turn: Turn, output: Output) -> None:
        self._enter(turn)
        try:
            turn.ready.wait()
            self._land(output)
        finally:
            self._start(self._leave(turn))

    def _write_behind(self, key: str, to_save: Value, paths: Iterable[str]) -> None:
        # the place first, the copy then: so there are never more than max_inflight copies
        self._slots.acquire()
        try:
            job = _Job(paths, Output(key, values.snapshot(to_save), uuid.uuid4().hex))
            ready = self._enter(job)
        except BaseException:
            self._slots.release()
            raise
        if ready:
            self._start([job])

    def _enter(self, turn: Turn) -> bool:
        with self._state:
            self._check_open()  # close() may have come while this call waited or copied
            self._pending += 1
            return self._order.enter(turn)

    def _leave(self, turn: Turn) -> list[_Job]:
        """Give up the place of a write that is done; returns the background writes that can go now."""
        free = self._order.leave(turn)
        with self._state:
            self._pending -= 1
            self._state.notify_all()
        # a small write that can go now has its own thread, which `Turn.ready` has woken
        return [following for following in free if isinstance(following, _Job)]

    def _start(self, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            try:
                self.pool.submit(self._run, job)
            except RuntimeError:
                # the interpreter is ending without a close(): what was accepted is still written
                self._run(job)

    def _run(self, job: _Job) -> None:
        todo: list[_Job] = [job]
        while todo:
            job = todo.pop()
            try:
                self._land(job.output)
            except BaseException as error:  # noqa: BLE001 - close() raises it
                _forget_values(error)
                with self._state:
                    self._errors.append(error)
            todo = self._leave(job)
            self._slots.release()
            # the next write of a path goes on in this thread
            self._start(todo[1:])
            del todo[1:]

    def _land(self, output: Output) -> None:
        (landed,) = self._writer.write_batch([output])
        if isinstance(landed, SinkError):
            raise _original(landed)
        if self.upload_queue is not None:
            for path in landed.paths:
                self.upload_queue.put(path)


def _original(error: SinkError) -> BaseException:
    """What was raised underneath: people expect the OSError of a full disk, with its errno."""
    original = error.__cause__ or error
    original.add_note(str(error))
    return original


def _forget_values(error: BaseException | None) -> None:
    """Let go of the tensors that the frames of a kept traceback hold; its lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _made(out_root: str | PathLike[str]) -> Path:
    try:
        root = Path(out_root).absolute()
        root.mkdir(parents=True, exist_ok=True)
    except TypeError:
        raise ConfigError(f"out_root must be a path, got {type(out_root).__name__}") from None
    except OSError as error:
        raise ConfigError(f"out_root {str(out_root)!r} cannot be made: {error}") from error
    return root


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an int of at least {least}, got {value!r}")
