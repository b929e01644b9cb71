"""One batch of proposals against all that is decided: who wins, who gets whose receipt, who gets an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ray_sink.book import Book
from ray_sink.config import OnConflict
from ray_sink.entries import folders_of
from ray_sink.errors import (
    DestinationConflict,
    DuplicateKeyError,
    PathConflict,
    RunFencedError,
    RunSealedError,
    SinkError,
)
from ray_sink.records import Decision, FileRecord, Proposal, Receipt, RunInfo, State, join_uri


class Round:
    """One batch being judged. Nothing is changed: the ledger writes `fresh` and `kept` down when all are judged.

    Attributes:
        fresh: the winners of this batch, by key.
        kept: keys of this batch that another run's output keeps, with what was found.
        counts: the conflict counts after this batch.
        sealed: the run is complete; new keys are refused.
    """

    def __init__(
        self, book: Book, on_conflict: OnConflict, foreign: Mapping[str, int], info: RunInfo, term: str
    ) -> None:
        self.fresh: dict[str, Proposal] = {}
        self.kept: dict[str, tuple[FileRecord, ...]] = {}
        self.counts = book.conflicts
        self.sealed = False
        self._book = book
        self._on_conflict = on_conflict
        self._foreign = foreign
        self._info = info
        self._term = term
        self._paths: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def judge(self, proposal: Proposal, receipt_of_key: Callable[[str], Receipt | None]) -> Decision:
        """Judge one proposal after all those before it.

        Args:
            proposal: what a writer has staged.
            receipt_of_key: the receipt of a decided key, if it is known to be published.
        """
        key = proposal.key
        if any(not temp.temp.startswith(f"{self._term}/") for temp in proposal.files):
            return _refused(key, RunFencedError(f"key {key!r} was staged for an older ledger: stage it again"))
        known = self._book.entries.get(key)
        winner = self.fresh.get(key) or (known.proposal if known else None)
        if winner is not None:
            return self._repeat(proposal, winner, receipt_of_key(key))
        kept = self.kept.get(key) or self._book.kept.get(key)
        if kept is not None:
            return Decision(key, receipt=kept_receipt(key, kept, self._info))
        if self.sealed:
            return _refused(key, _sealed_error(key, self._info.run_id))
        taken = self._path_conflict(proposal)
        if taken is not None:
            return _refused(key, taken)
        return self._first(proposal)

    def _first(self, proposal: Proposal) -> Decision:
        """The key is free in this run; another run's output may be in its place."""
        key = proposal.key
        found = tuple(
            FileRecord(temp.file.path, self._foreign[temp.file.path], "")
            for temp in proposal.files
            if temp.file.path in self._foreign
        )
        if found and self._on_conflict == "error":
            return _refused(key, conflict_error(key, found[0].path))
        if found and self._on_conflict == "keep":
            self.kept[key] = found
            self.counts = replace(self.counts, kept=self.counts.kept + 1)
            return Decision(key, receipt=kept_receipt(key, found, self._info))
        if found:
            self.counts = replace(self.counts, replaced=self.counts.replaced + 1)
        self.fresh[key] = proposal
        for temp in proposal.files:
            self._paths[temp.file.path] = key
            self._folders.update(dict.fromkeys(folders_of(temp.file.path), key))
        return Decision(key, winner=proposal)

    def _repeat(self, proposal: Proposal, winner: Proposal, receipt: Receipt | None) -> Decision:
        """A later attempt gets the winner's receipt; a different row of the same dataset gets an error."""
        # also of one attempt: that of another row, which was found at the destination
        if _different_rows(proposal.source, winner.source):
            return _refused(proposal.key, _duplicate_error(proposal, winner))
        if proposal.attempt != winner.attempt:
            if [temp.file for temp in proposal.files] == [temp.file for temp in winner.files]:
                self.counts = replace(self.counts, retries=self.counts.retries + 1)
            else:
                self.counts = replace(self.counts, retries_differing=self.counts.retries_differing + 1)
        return Decision(proposal.key, winner=winner, receipt=receipt)

    def _path_conflict(self, proposal: Proposal) -> PathConflict | None:
        """Two keys must not lead to one path, nor one key's file to another's folder."""
        mine = {temp.file.path for temp in proposal.files}
        decided = self._book.entries
        for temp in proposal.files:
            path = temp.file.path
            for owners in (decided.owner_of, self._paths.get, decided.owner_below, self._folders.get):
                owner = owners(path)
                if owner is not None and owner != proposal.key:
                    return _path_conflict_error(proposal.key, owner, path)
            for folder in folders_of(path):
                owner = decided.owner_of(folder) or self._paths.get(folder)
                owner = proposal.key if folder in mine else owner
                if owner is not None:
                    return _path_conflict_error(proposal.key, owner, folder)
        return None


def kept_receipt(key: str, files: tuple[FileRecord, ...], info: RunInfo) -> Receipt:
    """The receipt of a key whose place another run's output keeps; its checksum is not ours to tell."""
    base = info.dest or info.staging
    return Receipt(key, "", State.KEPT, tuple(replace(file, uri=join_uri(base, file.path)) for file in files))


def conflict_error(key: str, path: str) -> DestinationConflict:
    """The error for a key under which another run's output was found."""
    return DestinationConflict(
        f"key {key!r}: {path!r} was there before this run. Choose another destination, remove it, or say"
        ' on_conflict="replace" or "keep"',
        keys=[key],
    )


def _refused(key: str, error: SinkError) -> Decision:
    return Decision(key, error=error)


def _sealed_error(key: str, run_id: str) -> RunSealedError:
    return RunSealedError(
        f"run {run_id!r} is sealed and key {key!r} is not in it: give new outputs a run of their own (run_id=…, or"
        " another destination)"
    )


def _different_rows(one: str | None, other: str | None) -> bool:
    """Sources are ``<execution>/<row>``; rows of different executions cannot be told apart."""
    if one is None or other is None or one == other:
        return False
    return one.partition("/")[0] == other.partition("/")[0]


def _duplicate_error(proposal: Proposal, winner: Proposal) -> DuplicateKeyError:
    return DuplicateKeyError(
        f"key {proposal.key!r} comes from two different rows ({winner.source}, {proposal.source}): the second was not"
        " written. Make the key unique, e.g. key='{case_id}/{step:04d}'",
        keys=[proposal.key],
    )


def _path_conflict_error(wanting: str, having: str, path: str) -> PathConflict:
    return PathConflict(
        f"keys {having!r} and {wanting!r} both lead to {path!r}: rename one of them", keys=[having, wanting], path=path
    )
