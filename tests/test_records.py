from __future__ import annotations

import dataclasses
import pickle

import pytest

from ray_sink import records
from ray_sink.records import (
    FileRecord,
    Proposal,
    Receipt,
    RowCounts,
    State,
    TempFile,
    UploadTask,
    Verification,
    join_uri,
    receipt_of,
)

FILES = (FileRecord("a_u.pt", 3, "crc64nvme:1"), FileRecord("a_v.pt", 4, "crc64nvme:2"))
PROPOSAL = Proposal(
    "a", "t1", tuple(TempFile(f"000001.001/t1.{n}", file) for n, file in enumerate(FILES)), "d/7", ("n",)
)


def test_every_record_is_frozen_and_has_slots() -> None:
    kinds = [kind for kind in vars(records).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
    assert len(kinds) > 8
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        assert "__slots__" in vars(kind), kind


def test_records_cross_processes() -> None:
    for record in (PROPOSAL, receipt_of(PROPOSAL, State.STAGED, "/s"), RowCounts(1, 2, 3)):
        assert pickle.loads(pickle.dumps(record)) == record


def test_a_receipt_says_where_the_files_are() -> None:
    receipt = receipt_of(PROPOSAL, State.UPLOADED, "s3://bucket/runs", Verification.VERIFIED)
    assert [file.uri for file in receipt.files] == ["s3://bucket/runs/a_u.pt", "s3://bucket/runs/a_v.pt"]
    assert [(file.path, file.bytes, file.checksum) for file in receipt.files] == [
        ("a_u.pt", 3, "crc64nvme:1"),
        ("a_v.pt", 4, "crc64nvme:2"),
    ]
    assert (receipt.key, receipt.attempt, receipt.notes) == ("a", "t1", ("n",))
    assert (receipt.state, receipt.verification) == (State.UPLOADED, Verification.VERIFIED)


def test_bytes_are_those_of_all_files() -> None:
    assert receipt_of(PROPOSAL, State.STAGED, "/s").bytes == 7
    assert UploadTask("a", "t1", FILES).bytes == 7
    assert Receipt("a", "t1", State.KEPT, ()).bytes == 0


@pytest.mark.parametrize(
    ("base", "uri"),
    [
        ("/mnt/s", "/mnt/s/a/b.pt"),
        ("/mnt/s/", "/mnt/s/a/b.pt"),
        ("s3://bucket", "s3://bucket/a/b.pt"),
        ("s3://bucket/x/", "s3://bucket/x/a/b.pt"),
        ("file:///x", "file:///x/a/b.pt"),
    ],
)
def test_a_path_below_a_url_or_a_folder(base: str, uri: str) -> None:
    assert join_uri(base, "a/b.pt") == uri


def test_row_counts_add_up() -> None:
    assert RowCounts(1, 2, 3) + RowCounts(10, 20, 30) == RowCounts(11, 22, 33)


def test_states_and_verifications_are_plain_text_in_a_journal() -> None:
    assert [*State] == ["staged", "uploaded", "kept"]
    assert [*Verification] == ["verified", "size checked"]
