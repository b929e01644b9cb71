"""Objects compared with their receipts, in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import starmap

from ray_sink.errors import ObjectMissingError, StoreError
from ray_sink.records import FileRecord, Receipt, State
from ray_sink.retry import Retry
from ray_sink.stores.base import Store
from ray_sink.verification import PATIENCE, Piece, PieceVerdict, Problem, Trouble, trouble_of


class ListingChecks:
    """Compares names and sizes, and reads nothing. See `ray_sink.verification.Checks`.

    Args:
        url: the destination's.
        listing: sizes by path, from `listing_of`.
    """

    def __init__(self, url: str, listing: Mapping[str, int]) -> None:
        self._url = url.rstrip("/")
        self._listing = listing

    def check(self, run_id: str, pieces: Iterable[Piece]) -> Iterator[PieceVerdict]:
        """See `Checks.check`."""
        for piece in pieces:
            yield _verdict(piece, filter(None, starmap(self._problem, _files(piece))))

    def _problem(self, receipt: Receipt, file: FileRecord) -> Problem | None:
        where, size = f"{self._url}/{file.path}", self._listing.get(file.path)
        if size is None:
            return Problem(receipt.key, file.path, Trouble.MISSING, f"{where}: there is no such object")
        if size != file.bytes:
            message = f"{where} has {size} bytes; its receipt says {file.bytes}"
            return Problem(receipt.key, file.path, Trouble.DIFFERS, message)
        return None


@dataclass(slots=True)
class _Open:
    """A piece under way."""

    piece: Piece
    left: int
    problems: list[Problem] = field(default_factory=list)


class StoreChecks:
    """Reads each object and compares its checksum, in threads. See `ray_sink.verification.Checks`.

    Args:
        store: the destination.
        concurrency: objects that are read at a time.
        on_file: told of every file that was looked at, with its size.
    """

    def __init__(self, store: Store, *, concurrency: int, on_file: Callable[[int], None] = lambda _: None) -> None:
        self._store = store
        self._concurrency = concurrency
        self._on_file = on_file

    def check(self, run_id: str, pieces: Iterable[Piece]) -> Iterator[PieceVerdict]:
        """See `Checks.check`. The next piece's objects are read beside the last ones of the piece before."""
        stopped = threading.Event()
        retry = Retry(PATIENCE, sleep=lambda pause_s: _pause(stopped, pause_s))
        running: dict[Future[Problem | None], _Open] = {}

        def ended() -> Iterator[PieceVerdict]:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                piece = running.pop(future)
                piece.left -= 1
                if (problem := future.result()) is not None:
                    piece.problems.append(problem)
                if not piece.left:
                    yield _verdict(piece.piece, piece.problems)

        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="ray_sink-verify")
        try:
            for piece in pieces:
                files = _files(piece)
                opened = _Open(piece, len(files))
                if not files:
                    yield _verdict(piece, ())
                for receipt, file in files:
                    while len(running) >= 4 * self._concurrency:
                        yield from ended()
                    running[pool.submit(self._check_file, retry, receipt, file)] = opened
            while running:
                yield from ended()
        finally:
            # nobody waits for an object whose verdict nobody wants
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _check_file(self, retry: Retry, receipt: Receipt, file: FileRecord) -> Problem | None:
        try:
            message = retry.call(lambda _: self._complaint(receipt, file))
        except StoreError as error:
            return Problem(receipt.key, file.path, trouble_of(error), str(error))
        finally:
            self._on_file(file.bytes)
        return Problem(receipt.key, file.path, Trouble.DIFFERS, message) if message is not None else None

    def _complaint(self, receipt: Receipt, file: FileRecord) -> str | None:
        where = f"{self._store.url.rstrip('/')}/{file.path}"
        if receipt.state is State.KEPT:
            # another run's output: only that it is there is ours to say
            info = self._store.head(file.path)
            if info is None:
                raise ObjectMissingError(f"{where}: there is no such object", path=file.path)
            return None if info.bytes == file.bytes else f"{where} has {info.bytes} bytes; {file.bytes} were kept"
        found = self._store.read_checksum(file.path)
        return None if found == file.checksum else f"{where} reads as {found}; its receipt says {file.checksum}"


def _files(piece: Piece) -> list[tuple[Receipt, FileRecord]]:
    return [(receipt, file) for receipt in piece.receipts for file in receipt.files]


def _verdict(piece: Piece, problems: Iterable[Problem]) -> PieceVerdict:
    files = _files(piece)
    in_order = sorted(problems, key=lambda problem: problem.path)
    return PieceVerdict(piece.place, len(files), sum(file.bytes for _, file in files), tuple(in_order))


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


def _pause(stopped: threading.Event, pause_s: float) -> None:
    if stopped.wait(pause_s):
        raise _Stopped
