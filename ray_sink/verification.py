"""Whether a sealed run is still what it was: every object against its receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from ray_sink.catalogue import manifest_receipts, seal_of, sealed_bytes
from ray_sink.errors import ObjectMissingError, RunError, StoreError
from ray_sink.keys import RESERVED
from ray_sink.manifest import SUCCESS, ManifestFile, Seal, from_parquet, run_path
from ray_sink.records import Receipt
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.stores.base import Store

PATIENCE: Final = RetryPolicy(attempts=8, total_s=60, most_s=10)
_PIECE_OUTPUTS: Final = 4096
_PIECE_BYTES: Final = 4 * 2**30


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
class Place:
    """Which outputs a piece has. A manifest file's name tells its content, so this means the same ones for ever.

    Attributes:
        manifest: path of the manifest file.
        first: the first of its rows.
        outputs: how many.
    """

    manifest: str
    first: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Outputs that are checked together: a few thousand, or some gigabytes."""

    place: Place
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class PieceVerdict:
    """What checking a piece gave.

    Attributes:
        place: which outputs.
        files: files that were looked at.
        bytes: their size by their receipts, in bytes.
        problems: what is wrong.
    """

    place: Place
    files: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_final(self) -> bool:
        """Whether every object could be read, so that there is nothing to try again."""
        return all(problem.trouble is not Trouble.UNREADABLE for problem in self.problems)


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


class Checks(Protocol):
    """Compares objects with receipts: in this process, or on a cluster."""

    def check(self, run_id: str, pieces: Iterable[Piece]) -> Iterator[PieceVerdict]:
        """Verdicts, in the order in which they are reached. Takes only as many pieces as are under way.

        Raises:
            SinkError: nothing more can be checked.
        """


class KnownVerdicts(Protocol):
    """What an earlier verification, that was cut off, has checked."""

    def find(self, place: Place) -> PieceVerdict | None:
        """Its verdict on a piece."""

    def note(self, verdict: PieceVerdict) -> None:
        """Remember one more."""


class Verification:
    """Checks sealed runs of one destination.

    Args:
        store: the destination.
        checks: compares the objects.
        known: verdicts that are taken as they are.
        on_known: told of each of these.
        retry: for a store that does not answer.
        piece_outputs: most outputs in a piece.
    """

    def __init__(
        self,
        store: Store,
        checks: Checks,
        *,
        known: KnownVerdicts | None = None,
        on_known: Callable[[PieceVerdict], None] = lambda _: None,
        retry: Retry | None = None,
        piece_outputs: int = _PIECE_OUTPUTS,
    ) -> None:
        self._store = store
        self._checks = checks
        self._known = known
        self._on_known = on_known
        self._retry = retry or Retry(PATIENCE)
        self._piece_outputs = piece_outputs

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
        """Check one run, whatever is wrong with it.

        Raises:
            SinkError: nothing more can be checked.
        """
        run_id = seal.run.run_id
        problems: list[Problem] = []
        outputs = n_files = n_bytes = 0
        for manifest in seal.manifest:
            try:
                data = self._bytes(manifest)
            except (RunError, StoreError) as error:
                problems.append(Problem(None, manifest.path, trouble_of(error), str(error)))
                continue
            verdicts = sorted(self._verdicts(run_id, manifest, data), key=lambda verdict: verdict.place.first)
            for verdict in verdicts:
                outputs += verdict.place.outputs
                n_files += verdict.files
                n_bytes += verdict.bytes
                problems += verdict.problems
        if not problems and outputs != seal.outputs:
            message = f"the manifest has {outputs} outputs; _SUCCESS says {seal.outputs}"
            problems.append(Problem(None, run_path(run_id, SUCCESS), Trouble.DIFFERS, message))
        return RunVerdict(run_id, outputs, n_files, n_bytes, tuple(problems))

    def _bytes(self, manifest: ManifestFile) -> bytes:
        return self._retry.call(lambda _: sealed_bytes(self._store, manifest))

    def _verdicts(self, run_id: str, manifest: ManifestFile, data: bytes) -> list[PieceVerdict]:
        found: list[PieceVerdict] = []

        def unknown() -> Iterator[Piece]:
            for piece in self._pieces(manifest, data):
                verdict = self._known.find(piece.place) if self._known is not None else None
                if verdict is None:
                    yield piece
                else:
                    found.append(verdict)
                    self._on_known(verdict)

        for verdict in self._checks.check(run_id, unknown()):
            found.append(verdict)
            if self._known is not None:
                self._known.note(verdict)
        return found

    def _pieces(self, manifest: ManifestFile, data: bytes) -> Iterator[Piece]:
        """All rows, in order; never many of them at a time."""
        held: list[Receipt] = []
        first = held_bytes = 0
        for receipt in from_parquet(data):
            if len(held) == self._piece_outputs or (held and held_bytes + receipt.bytes > _PIECE_BYTES):
                yield Piece(Place(manifest.path, first, len(held)), tuple(held))
                first, held, held_bytes = first + len(held), [], 0
            held.append(receipt)
            held_bytes += receipt.bytes
        if held:
            yield Piece(Place(manifest.path, first, len(held)), tuple(held))

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


def trouble_of(error: Exception) -> Trouble:
    """What an error says of an object."""
    if isinstance(error, ObjectMissingError):
        return Trouble.MISSING
    return Trouble.UNREADABLE if isinstance(error, StoreError) else Trouble.DIFFERS
