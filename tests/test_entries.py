"""Entries: what millions of decided keys are found by, against plain dicts."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sink import entries as module
from ray_sink.entries import Entries, folders_of, record_of
from ray_sink.errors import JournalCorruptError
from ray_sink.records import FileRecord, Proposal, TempFile, Verification


def proposal(key: str, *paths: str) -> Proposal:
    files = tuple(TempFile(f"1/{path}", FileRecord(path, 7, "crc64nvme:0")) for path in paths or (f"{key}.npy",))
    return Proposal(key, f"attempt of {key}", files, f"d/{key}", ("note",))


NAMES = st.lists(st.sampled_from(["a", "b", "a_b", "a.npy", "ä"]), min_size=1, max_size=3).map("/".join)


@dataclass
class Known:
    """The same, plainly."""

    proposals: dict[str, Proposal] = field(default_factory=dict)
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    proofs: dict[str, Verification] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)

    def owners_of(self, path: str) -> set[str]:
        return {p.key for p in self.proposals.values() if path in {temp.file.path for temp in p.files}}

    def owners_below(self, folder: str) -> set[str]:
        return {p.key for p in self.proposals.values() for temp in p.files if folder in set(folders_of(temp.file.path))}


@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.booleans(), st.dictionaries(NAMES, st.lists(NAMES, max_size=3, unique=True), max_size=4)),
        max_size=8,
    ),
    collide=st.booleans(),
    data=st.data(),
)
def test_everything_is_found_as_in_plain_dicts(
    batches: list[tuple[bool, dict[str, list[str]]]], collide: bool, data: st.DataObject
) -> None:
    entries, known = Entries(), Known()
    term, seq = 1, 0
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            # all names in a handful of hashes: what is found must be told by the names themselves
            patch.setattr(module, "hash", lambda name: len(name) % 3, raising=False)
        for new_term, batch in batches:
            term, seq = (term + 1, 0) if new_term else (term, seq + 2)
            fresh = [proposal(key, *paths) for key, paths in batch.items() if key not in known.proposals]
            for _ in range(2):  # the last record may come again
                entries.append(f"{term}", seq, [record_of(one) for one in fresh])
            for index, one in enumerate(fresh):
                known.proposals[one.key] = one
                known.places[one.key] = (f"{term}", seq, index)
            for key in data.draw(st.sets(st.sampled_from(sorted(known.proposals)))) if known.proposals else ():
                where, number, index = known.places[key]
                if data.draw(st.booleans()):
                    proof = data.draw(st.sampled_from(Verification))
                    (found,) = entries.upload(where, number, [index], proof)
                    assert entries[found].proposal.key == key
                    known.proofs[key] = proof
                    known.published.discard(key)
                else:
                    entry = entries.get(key)
                    assert entry is not None
                    entries.publish(entry.number)
                    known.published |= {key} - known.proofs.keys()
        assert list(entries) == list(known.proposals)
        assert (len(entries), entries.uploaded) == (len(known.proposals), len(known.proofs))
        assert entries.published == len(known.published)
        for key, one in known.proposals.items():
            entry = entries.get(key)
            assert entry is not None
            assert (entry.proposal, entry.decided) == (one, known.places[key])
            assert (entry.uploaded, entry.published) == (known.proofs.get(key), key in known.published)
        waiting = [key for key in known.proposals if key not in known.proofs and key not in known.published]
        assert [entry.proposal.key for entry in entries.pending()] == waiting
        names = {name for one in known.proposals.values() for temp in one.files for name in folders_of(temp.file.path)}
        names |= {temp.file.path for one in known.proposals.values() for temp in one.files} | known.proposals.keys()
        for name in names | {"a", "zz", ""}:
            assert (name in entries) == (name in known.proposals)
            for owner, owners in (
                (entries.owner_of(name), known.owners_of(name)),
                (entries.owner_below(name), known.owners_below(name)),
            ):
                assert owner in owners or (owner is None and not owners), name


def test_a_key_that_is_decided_twice_and_an_upload_of_nothing_are_damage() -> None:
    entries = Entries()
    entries.append("1", 3, [record_of(proposal("a"))])
    with pytest.raises(JournalCorruptError, match="'a' is decided twice"):
        entries.append("1", 4, [record_of(proposal("a"))])
    for term, seq, index in (("2", 3, 0), ("1", 2, 0), ("1", 3, 1), ("1", 3, -1)):
        with pytest.raises(JournalCorruptError, match="an upload of record"):
            entries.upload(term, seq, [index], Verification.VERIFIED)


def test_a_committed_key_costs_its_bytes_and_no_object() -> None:
    row_bytes = len(str(record_of(proposal("sample_000000"))))
    tracemalloc.start()
    try:
        entries = Entries()
        for number in range(20_000):
            entries.append("1", number, [record_of(proposal(f"sample_{number:06d}"))])
        taken = tracemalloc.take_snapshot().statistics("filename")
        (ours,) = [line for line in taken if line.traceback[0].filename == module.__file__]
    finally:
        tracemalloc.stop()
    assert ours.count < 100
    assert ours.size < 20_000 * (row_bytes + 100)
