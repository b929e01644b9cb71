"""All decided keys of a run, millions of them, without a Python object for each.

An entry is one row: the attempt as its journal record holds it, in one buffer behind those before it, and a byte that
says how far it has come. Keys, paths and folders are found by tables of hashes; what a hash finds is compared with the
row itself, so that no two names are ever taken for one. Some 300 bytes an entry, however far it has come.

One thread at a time adds; others may look things up meanwhile: what can be found is complete.
"""

from __future__ import annotations

import marshal
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ray_sink.errors import JournalCorruptError
from ray_sink.records import FileRecord, Proposal, TempFile, Verification

_DECIDED, _PUBLISHED = 0, 1
_PROOFS: Final = {2: Verification.SIZE_CHECKED, 3: Verification.VERIFIED}
_PROVEN: Final = {proof: state for state, proof in _PROOFS.items()}
_FIRST_SLOTS: Final = 2**10
_HASH: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One decided key, as it stands.

    Attributes:
        number: its place among all entries, from 0.
        proposal: the winning attempt.
        decided: term and sequence number of its record, and its place in it.
        published: this life knows that it is under its final name, and it is not uploaded.
        uploaded: what its upload proved, or None.
    """

    number: int
    proposal: Proposal
    decided: tuple[str, int, int]
    published: bool
    uploaded: Verification | None


class Entries:
    """See the module's text. Entries are numbered in the order of their decisions, and none is ever taken out.

    Attributes:
        published: how many are known to be published and not uploaded.
        uploaded: how many are uploaded.
    """

    def __init__(self) -> None:
        self._rows = bytearray()
        self._starts = array("Q", [0])
        self._states = bytearray()
        self.published = 0
        self.uploaded = 0
        self._keys, self._paths, self._folders = Table(), Table(), Table()
        self._suffix = self._last_folder = ""
        # of each record: its first entry and its sequence number; of each term: its first record
        self._firsts, self._seqs = array("Q"), array("Q")
        self._terms: list[str] = []
        self._records = array("Q")

    def append(self, term: str, seq: int, batch: Sequence[Sequence[Any]]) -> None:
        """Take in one record's batch, as `record_of` makes it; records come in the order of terms and numbers.

        The last one may come again: the ``open`` of the next file repeats it.

        Raises:
            JournalCorruptError: a key was decided before.
        """
        if self._terms and (self._terms[-1], self._seqs[-1]) == (term, seq):
            return
        if not self._terms or self._terms[-1] != term:
            self._terms.append(term)
            self._records.append(len(self._seqs))
        self._firsts.append(len(self._states))
        self._seqs.append(seq)
        for row in batch:
            self._append(row)

    def _append(self, row: Sequence[Any]) -> None:
        key, number = row[0], len(self._states)
        self._rows += marshal.dumps(list(row))
        self._starts.append(len(self._rows))
        self._states.append(_DECIDED)
        if not number and row[4]:
            self._suffix = row[4][0][1].removeprefix(key)
        for _, path, _, _ in row[4]:
            if path != key + self._suffix:
                self._paths.add(path, number)
            folder = path.rpartition("/")[0]
            if folder != self._last_folder:
                self._last_folder = folder
                for above in folders_of(path):
                    if self.owner_below(above) is None:
                        self._folders.add(above, number)
        if any(self._row(other)[0] == key for other in self._keys.add(key, number)):
            raise JournalCorruptError(f"key {key!r} is decided twice in the run's journals")

    def upload(self, term: str, seq: int, indices: Sequence[int], proof: Verification) -> list[int]:
        """Note what uploads proved, by decided record and places in it; returns the entries' numbers.

        Raises:
            JournalCorruptError: there is no such record, or it has no such place.
        """
        first, end = self._record(term, seq)
        numbers = [first + index for index in indices]
        if any(not first <= number < end for number in numbers):
            raise JournalCorruptError(f"an upload of record {seq} of term {term} is of no output in it")
        for number in numbers:
            self.published -= self._states[number] == _PUBLISHED
            self.uploaded += self._states[number] not in _PROOFS
            self._states[number] = _PROVEN[proof]
        return numbers

    def _record(self, term: str, seq: int) -> tuple[int, int]:
        """Number of the first entry of a record, and of the first behind it."""
        if term in self._terms:
            place = self._terms.index(term)
            end = self._records[place + 1] if place + 1 < len(self._terms) else len(self._seqs)
            record = bisect_left(self._seqs, seq, self._records[place], end)
            if record < end and self._seqs[record] == seq:
                behind = self._firsts[record + 1] if record + 1 < len(self._firsts) else len(self._states)
                return self._firsts[record], behind
        raise JournalCorruptError(f"an upload of record {seq} of term {term}, which decided nothing")

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return self.number_of(key) is not None

    def __iter__(self) -> Iterator[str]:
        """All keys, in the order of their decisions."""
        return (self._row(number)[0] for number in range(len(self)))

    def publish(self, number: int) -> None:
        """Note that an entry is under its final name; no record says so, each life finds out."""
        if self._states[number] == _DECIDED:
            self._states[number] = _PUBLISHED
            self.published += 1

    def pending(self) -> Iterator[Entry]:
        """Those neither uploaded nor known to be published, in the order of their decisions."""
        number = self._states.find(_DECIDED)
        while number >= 0:
            yield self[number]
            number = self._states.find(_DECIDED, number + 1)

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, if it is decided."""
        number = self.number_of(key)
        return None if number is None else self[number]

    def number_of(self, key: str) -> int | None:
        """The place of `key` among all entries, if it is decided."""
        for number in self._keys.candidates(key):
            if self._row(number)[0] == key:
                return number
        return None

    def proof_of(self, number: int) -> Verification | None:
        """What the upload of an entry proved, or None."""
        return _PROOFS.get(self._states[number])

    def __getitem__(self, number: int) -> Entry:
        return self._entry(number, self._row(number))

    def _entry(self, number: int, row: Sequence[Any]) -> Entry:
        record = bisect_right(self._firsts, number) - 1
        term = self._terms[bisect_right(self._records, record) - 1]
        decided = (term, self._seqs[record], number - self._firsts[record])
        state = self._states[number]
        return Entry(number, proposal_from(row), decided, state == _PUBLISHED, _PROOFS.get(state))

    def owner_of(self, path: str) -> str | None:
        """The key that a file's path belongs to."""
        numbers = self._paths.candidates(path)
        if path.endswith(self._suffix):
            # most are their key and the run's suffix: those are found by their keys
            numbers += self._keys.candidates(path.removesuffix(self._suffix))
        for number in numbers:
            row = self._row(number)
            if any(path == file[1] for file in row[4]):
                return str(row[0])
        return None

    def owner_below(self, folder: str) -> str | None:
        """A key with a file somewhere below `folder`."""
        for number in self._folders.candidates(folder):
            row = self._row(number)
            if any(file[1].startswith(f"{folder}/") for file in row[4]):
                return str(row[0])
        return None

    def _row(self, number: int) -> Any:
        return marshal.loads(self._rows[self._starts[number] : self._starts[number + 1]])


class Table:
    """Numbers by the hash of a name: a slot of 8 bytes each, 32 bits of hash and the number, open addressing."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._used = 0

    def add(self, name: str, number: int) -> list[int]:
        """Let `candidates` find `number`, below 2^32 - 1, under `name`; returns what it found so far."""
        if 3 * self._used >= 2 * len(self._slots):
            self._grow()
        found, at = self._find(name)
        self._slots[at] = (hash(name) & _HASH) << 32 | number + 1
        self._used += 1
        return found

    def candidates(self, name: str) -> list[int]:
        """The numbers under `name`, and rarely others; in the order in which they were added."""
        return self._find(name)[0] if self._used else []

    def _find(self, name: str) -> tuple[list[int], int]:
        """The numbers, and the first free slot behind them."""
        slots, mask, wanted = self._slots, len(self._slots) - 1, hash(name) & _HASH
        found = []
        at = wanted & mask
        while slot := slots[at]:
            if slot >> 32 == wanted:
                found.append((slot & _HASH) - 1)
            at = (at + 1) & mask
        return found, at

    def _grow(self) -> None:
        larger = array("Q", bytes(16 * len(self._slots)))
        mask = len(larger) - 1
        for slot in self._slots:
            if slot:
                at = (slot >> 32) & mask
                while larger[at]:
                    at = (at + 1) & mask
                larger[at] = slot
        self._slots = larger


def record_of(proposal: Proposal) -> list[Any]:
    """A proposal as the journal holds it."""
    return [
        proposal.key,
        proposal.attempt,
        proposal.source,
        list(proposal.notes),
        [[t.temp, t.file.path, t.file.bytes, t.file.checksum] for t in proposal.files],
    ]


def proposal_from(row: Sequence[Any]) -> Proposal:
    """The inverse of `record_of`."""
    key, attempt, source, notes, files = row
    temps = tuple(TempFile(temp, FileRecord(path, size, checksum)) for temp, path, size, checksum in files)
    return Proposal(key, attempt, temps, source, tuple(notes))


def folders_of(path: str) -> Iterator[str]:
    """Every folder above the relative path `path`, the nearest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
