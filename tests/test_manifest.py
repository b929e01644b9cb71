"""Manifest and seal: what is sealed is whole, said once, and readable by others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from ray_sink import manifest
from ray_sink.errors import RunError, RunFencedError, StoreUnavailableError
from ray_sink.manifest import Seal, from_parquet, read_seal, run_path, seal, to_parquet
from ray_sink.records import ConflictCounts, FileRecord, Receipt, RowCounts, RunInfo, RunStatus, State, Verification
from tests.model.disk import Disk
from tests.model.script import Process, Script
from tests.model.store import Bucket, SimulatedStore

INFO = RunInfo("run", "sim://bucket", "/disk", "numpy_npy", "single")
ROWS, COUNTS = RowCounts(5, 4, 1), ConflictCounts(1, 2, 3, 4)


def receipt(key: str, verification: Verification | None = Verification.VERIFIED) -> Receipt:
    files = (
        FileRecord(f"{key}.npy", 7, "crc64nvme:0123456789abcdef", f"sim://bucket/{key}.npy"),
        FileRecord("shard", 9, "crc64nvme:00", None, member=f"{key}.x", offset=512, length=9),
    )
    state = State.UPLOADED if verification else State.STAGED
    return Receipt(key, f"t-{key}", state, files, verification, ("x: bfloat16 stored as float32",))


RECEIPTS = [receipt("a"), receipt("b/ä", Verification.SIZE_CHECKED), Receipt("c", "", State.KEPT, ())]


@pytest.fixture
def bucket() -> Bucket:
    return Bucket(Script())


@pytest.fixture
def store(bucket: Bucket) -> SimulatedStore:
    process = Process("uploader")
    return SimulatedStore(bucket, process, Disk(bucket.script).view(process))


def sealed(store: SimulatedStore, receipts: list[Receipt] = RECEIPTS, epoch: int = 1) -> Seal:
    return seal(store, INFO, epoch, receipts, RunStatus(rows=ROWS, conflicts=COUNTS))


def test_receipts_come_back_from_parquet() -> None:
    assert list(from_parquet(to_parquet(RECEIPTS))) == RECEIPTS
    assert list(from_parquet(to_parquet([]))) == []


def test_the_same_receipts_are_the_same_bytes() -> None:
    assert to_parquet(RECEIPTS) == to_parquet(list(RECEIPTS))


def test_pyarrow_and_duckdb_read_it(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    path.write_bytes(to_parquet(RECEIPTS))
    assert pq.read_table(path).column("key").to_pylist() == ["a", "b/ä", "c"]
    rows = (
        duckdb.connect()
        .execute(
            "select key, state, bytes, files[1].path, files[2].member, notes[1]"
            f" from read_parquet('{path}') order by key"
        )
        .fetchall()
    )
    assert rows[0] == ("a", "uploaded", 16, "a.npy", "a.x", "x: bfloat16 stored as float32")
    assert [row[1] for row in rows] == ["uploaded", "uploaded", "kept"]


def test_a_seal_says_what_is_in_it_and_comes_back(store: SimulatedStore, bucket: Bucket) -> None:
    made = sealed(store)
    assert read_seal(store, "run") == made
    assert (made.outputs, made.files, made.total_bytes) == (3, 4, 32)
    assert made.verification is Verification.SIZE_CHECKED
    assert (made.rows, made.conflicts, made.epoch) == (ROWS, COUNTS, 1)
    assert list(bucket.objects) == [made.manifest[0].path, run_path("run", "_SUCCESS")]
    assert list(from_parquet(bucket.objects[made.manifest[0].path].data)) == RECEIPTS


@pytest.mark.parametrize(
    ("receipts", "weakest"),
    [([receipt("a")], Verification.VERIFIED), ([receipt("a", None)], None), ([], None)],
)
def test_a_seal_says_the_weakest_proof(
    store: SimulatedStore, receipts: list[Receipt], weakest: Verification | None
) -> None:
    assert sealed(store, receipts).verification is weakest


def test_an_empty_run_has_a_manifest_too(store: SimulatedStore, bucket: Bucket) -> None:
    made = sealed(store, [])
    assert made.outputs == 0
    assert list(from_parquet(bucket.objects[made.manifest[0].path].data)) == []


def test_sealing_again_is_the_same_seal(store: SimulatedStore, bucket: Bucket) -> None:
    made = sealed(store)
    before = dict(bucket.objects)
    assert sealed(store) == made
    assert bucket.objects == before


@pytest.mark.parametrize("fault", ["put lost its answer", "put failed", "put came late"])
@pytest.mark.parametrize("put", [1, 2])
def test_after_a_reply_that_never_came_sealing_is_repeated(
    store: SimulatedStore, bucket: Bucket, fault: str, put: int
) -> None:
    bucket.script.plan[put] = lambda process: setattr(bucket, "fault", fault)
    with pytest.raises(StoreUnavailableError):
        sealed(store)
    made = sealed(store)
    bucket.land()
    assert bucket.script.happened[fault] == bucket.script.happened["planned"] == 1
    assert read_seal(store, "run") == made
    assert len(bucket.objects) == 2


def test_somebody_elses_seal_stays_and_is_named(store: SimulatedStore) -> None:
    theirs = sealed(store, epoch=3)
    with pytest.raises(RunFencedError, match="epoch 3"):
        sealed(store, RECEIPTS[:1])
    assert read_seal(store, "run") == theirs


def test_the_seal_that_the_owner_before_was_about_to_make_is_ours_too(store: SimulatedStore, bucket: Bucket) -> None:
    theirs = sealed(store, epoch=3)
    before = dict(bucket.objects)
    assert sealed(store, epoch=4) == theirs
    assert bucket.objects == before, "one manifest, as it was sealed"


def test_many_outputs_are_many_files_that_hold_each_once(
    store: SimulatedStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_ROWS_A_FILE", 2)
    receipts = [receipt(f"k{number}") for number in range(5)]
    made = sealed(store, receipts)
    assert [file.outputs for file in made.manifest] == [2, 2, 1]
    assert [row for file in made.manifest for row in from_parquet(bucket.objects[file.path].data)] == receipts
    assert all(file.bytes == len(bucket.objects[file.path].data) for file in made.manifest)


def test_no_seal_is_none(store: SimulatedStore) -> None:
    assert read_seal(store, "run") is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 1}', b'{"version": 2}', b"\xff\xfe"])
def test_what_is_no_seal_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(RunError, match="_SUCCESS"):
        Seal.from_json(data)


def test_a_seal_waits_for_no_library_when_it_has_got_ready() -> None:
    code = """if True:
        import sys
        from ray_sink import manifest
        from ray_sink.records import FileRecord, Receipt, State
        manifest.get_ready()
        before = set(sys.modules)
        file = FileRecord("a.npy", 7, "crc64nvme:00", "sim://bucket/a.npy")
        manifest.to_parquet([Receipt("a", "t", State.STAGED, (file,), notes=("stored as float32",))])
        print({name.partition(".")[0] for name in set(sys.modules) - before} & {"pyarrow", "pandas"})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"
