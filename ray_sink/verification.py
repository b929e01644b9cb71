"""Whether a sealed run is still what it was: every object against its receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum

from ray_sink.catalogue import manifest_receipts, seal_of
from ray_sink.errors import ObjectMissingError, RunError, StoreUnavailableError
from ray_sink.keys import RESERVED
from ray_sink.manifest import SUCCESS, ManifestFile, Seal, run_path
from ray_sink.records import FileRecord, Receipt, State
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores.base import Store

_PATIENCE = RetryPolicy(attempts=8, total_s=60, most_s=10)


class Trouble(StrEnum):
    """What is wrong with an object."""

    MISSING = "missing"
    """Nothing is under its name."""
    DIFFERS = "differs"
    """What is there is not what its receipt, or the seal, says."""
    UNREADABLE = "unreadable"
    """The store did not let it be read, so nobody can tell."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One object that is not as it should be.

    Attributes:
        key: the output's key; None for the run's own objects.
        path: the object's path relative to the destination.
        trouble: what is wrong.
        message: the same in words.
    """

    key: str | None
    path: str
    trouble: Trouble
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """An object that no manifest knows."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """What checking one run gave.

    Attributes:
        run_id: the run.
        outputs: keys that were looked at.
        files: files that were looked at.
        bytes: their size by their receipts, in bytes.
        problems: what is wrong.
    """

    run_id: str
    outputs: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]


class Verification:
    """Checks sealed runs of one destination.

    Args:
        store: the destination.
        listing: sizes by path, from `listing_of`: then only names and sizes are compared. None: each object is read and
            its checksum compared.
        concurrency: objects that are read at a time.
        on_file: told of every file that was looked at, with its size.
        retry: for a store that does not answer.
    """

    def __init__(
        self,
        store: Store,
        *,
        listing: Mapping[str, int] | None,
        concurrency: int,
        on_file: Callable[[int], None],
        retry: Retry | None = None,
    ) -> None:
        self._store = store
        self._listing = listing
        self._concurrency = concurrency
        self._on_file = on_file
        self._retry = retry or Retry(_PATIENCE)

    def seal(self, run_id: str) -> Seal | Problem:
        """The run's seal, or what is wrong with it.

        Raises:
            RunError: the run is not sealed.
        """
        path = run_path(run_id, SUCCESS)
        if self._retry.call(lambda _: self._store.head(path)) is None:
            seal_of(self._store, run_id)
        try:
            return self._retry.call(lambda _: seal_of(self._store, run_id))
        except RunError as error:
            return Problem(None, path, Trouble.DIFFERS, str(error))

    def check(self, seal: Seal) -> RunVerdict:
        """Check one run, whatever is wrong with it."""
        problems: list[Problem] = []
        outputs = n_files = n_bytes = 0
        for manifest in seal.manifest:
            try:
                receipts = self._receipts(manifest)
            except (RunError, ObjectMissingError, StoreUnavailableError) as error:
                problems.append(Problem(None, manifest.path, _trouble(error), str(error)))
                continue
            outputs += len(receipts)
            n_files += sum(len(receipt.files) for receipt in receipts)
            n_bytes += sum(receipt.bytes for receipt in receipts)
            problems += self._check_all(receipts)
        if not problems and outputs != seal.outputs:
            message = f"the manifest has {outputs} outputs; _SUCCESS says {seal.outputs}"
            problems.append(Problem(None, run_path(seal.run.run_id, SUCCESS), Trouble.DIFFERS, message))
        return RunVerdict(seal.run.run_id, outputs, n_files, n_bytes, tuple(problems))

    def _receipts(self, file: ManifestFile) -> list[Receipt]:
        return self._retry.call(lambda _: list(manifest_receipts(self._store, file)))

    def _check_all(self, receipts: Iterable[Receipt]) -> Iterator[Problem]:
        """Problems in the order in which they are found; the queue in front of the threads is short."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="ray_sink-verify") as pool:
            running: set[Future[Problem | None]] = set()
            for receipt in receipts:
                for file in receipt.files:
                    if len(running) >= 4 * self._concurrency:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from filter(None, (future.result() for future in done))
                    running.add(pool.submit(self._check_file, receipt, file))
            yield from filter(None, (future.result() for future in running))

    def _check_file(self, receipt: Receipt, file: FileRecord) -> Problem | None:
        try:
            message = self._retry.call(lambda _: self._complaint(receipt, file))
        except (ObjectMissingError, StoreUnavailableError) as error:
            return Problem(receipt.key, file.path, _trouble(error), str(error))
        finally:
            self._on_file(file.bytes)
        return Problem(receipt.key, file.path, Trouble.DIFFERS, message) if message is not None else None

    def _complaint(self, receipt: Receipt, file: FileRecord) -> str | None:
        where = f"{self._store.url.rstrip('/')}/{file.path}"
        if self._listing is not None:
            if file.path not in self._listing:
                raise ObjectMissingError(f"{where}: there is no such object", path=file.path)
            size = self._listing[file.path]
            return None if size == file.bytes else f"{where} has {size} bytes; its receipt says {file.bytes}"
        if receipt.state is State.KEPT:
            # another run's output: only that it is there is ours to say
            info = self._store.head(file.path)
            if info is None:
                raise ObjectMissingError(f"{where}: there is no such object", path=file.path)
            return None if info.bytes == file.bytes else f"{where} has {info.bytes} bytes; {file.bytes} were kept"
        found = self._store.read_checksum(file.path)
        return None if found == file.checksum else f"{where} reads as {found}; its receipt says {file.checksum}"

    def extra(self, seals: Iterable[Seal], listing: Mapping[str, int]) -> list[Found]:
        """Objects of `listing` that none of these runs has; their own folder aside.

        Raises:
            RunError: a manifest is damaged, so that nobody can tell what belongs to it.
        """
        left = {path: size for path, size in listing.items() if not path.startswith(f"{RESERVED}/")}
        for seal in seals:
            for manifest in seal.manifest:
                for receipt in manifest_receipts(self._store, manifest):
                    for file in receipt.files:
                        left.pop(file.path, None)
        return [Found(path, size) for path, size in sorted(left.items())]


def listing_of(store: Store) -> dict[str, int]:
    """Sizes of all objects at a destination, by path."""
    return {info.path: info.bytes for info in store.list()}


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, ObjectMissingError):
        return Trouble.MISSING
    return Trouble.UNREADABLE if isinstance(error, StoreUnavailableError) else Trouble.DIFFERS
