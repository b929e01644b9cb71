"""A run's journal counted, for whoever only wants to know how many, or where one of them is: a tenth of a book's work.

No table of keys is made, and nothing can be decided by it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_sink.book import Book
from ray_sink.entries import proposal_from
from ray_sink.errors import JournalCorruptError
from ray_sink.records import Proposal, Verification

_GONE = -1


@dataclass(slots=True)
class Found:
    """A decided key that was looked for; `uploaded` is what its upload proved."""

    proposal: Proposal
    uploaded: Verification | None = None


class Tally(Book):
    """What a run's journal adds up to, in numbers.

    Args:
        wanted: which keys to remember in `found`; None: none.

    Attributes:
        decided: keys decided.
        decided_bytes: size of their files, in bytes.
        uploaded: keys uploaded.
        uploaded_bytes: size of their files, in bytes.
        found: decided keys that were looked for, in the order of their decisions.
    """

    def __init__(self, wanted: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self.decided = self.decided_bytes = self.uploaded = self.uploaded_bytes = 0
        self.found: list[Found] = []
        self._wanted = wanted
        # of each record: the size of each output, until it is uploaded; where its keys were looked for, what was found
        self._sizes: dict[tuple[str, int], array[int]] = {}
        self._places: dict[tuple[str, int, int], Found] = {}
        self._keys: list[str] = []

    def _apply_decided(self, record: Mapping[str, Any], seq: int) -> None:
        self.closing = False
        if (self.term, seq) in self._sizes:
            return  # the ``open`` of the next file repeats it
        batch = record["batch"]
        sizes = array("q", [sum(size for _, _, size, _ in files) for _, _, _, _, files in batch])
        self._sizes[self.term, seq] = sizes
        self.decided += len(sizes)
        self.decided_bytes += sum(sizes)
        # no key holds a control character
        self._keys.append("\0".join(["", *(row[0] for row in batch), ""]))
        if self._wanted is not None:
            for index, row in enumerate(batch):
                if self._wanted(row[0]):
                    self.found.append(Found(proposal_from(row)))
                    self._places[self.term, seq, index] = self.found[-1]
        self._count_conflicts(record)

    def _apply_committed(self, record: Mapping[str, Any], seq: int) -> None:
        self._apply_decided(record, seq)
        done = [[self.term, seq, [index], proof] for index, proof in enumerate(record["proofs"])]
        self._apply_uploaded({"batch": done, "conflicts": record["conflicts"]}, seq)

    def _apply_uploaded(self, record: Mapping[str, Any], seq: int) -> None:
        for term, decided_seq, indices, proof in record["batch"]:
            sizes = self._sizes.get((term, decided_seq))
            if sizes is None or max(indices) >= len(sizes):
                raise JournalCorruptError(f"an upload of record {decided_seq} of term {term}, which did not decide it")
            for index in indices:
                if sizes[index] != _GONE:
                    self.uploaded += 1
                    self.uploaded_bytes += sizes[index]
                    sizes[index] = _GONE
                if (place := self._places.get((term, decided_seq, index))) is not None:
                    place.uploaded = Verification(proof)
        self._count_conflicts(record)

    def _apply_sources(self, record: Mapping[str, Any], seq: int) -> None:
        return  # nobody asks a tally for input rows

    def uncommitted_failures(self) -> dict[str, str]:
        """Reason by key, for outputs that failed and were not decided after all."""
        return {
            key: reason
            for key, reason in self.failures.items()
            if key not in self.kept and not any(f"\0{key}\0" in some for some in self._keys)
        }
