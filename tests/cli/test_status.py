from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ray_sink.config import UploadOptions
from ray_sink.journal_objects import JournalObjects, JournalStaging
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.ownership import Owner, StorePlace, claim
from ray_sink.records import FileRecord, Proposal, RunInfo, TempFile, Verification
from ray_sink.stores import open_store
from tests.cli.conftest import call, run
from tests.cli.runs import Driver, bytes_of, driver_process, heard, staged_run
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in

FIELDS = {
    *("run_id", "dest", "staging", "state", "outputs", "bytes", "staged", "staged_bytes", "uploaded"),
    *("uploaded_bytes", "kept", "failures", "unfinished", "conflicts", "rows", "owner", "live"),
}


def status(staging: Path, *arguments: object) -> dict[str, object]:
    answer = call("status", "--staging", staging, "--watch-s", 0, "--json", *arguments)
    (row,) = answer.json["runs"]
    assert (answer.code == 0) == answer.json["ok"]
    return dict(row)


def touched(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_that_nobody_works_on_is_not_well_and_nothing_is_written(staging: Path, tmp_path: Path) -> None:
    staged_run(staging, str(tmp_path / "dest"), 6, finished=False)
    before = touched(tmp_path)
    answer = run("status", "--staging", staging, "--json")
    assert answer.code == 1, answer.err
    (row,) = answer.json["runs"]
    size = sum(len(bytes_of(f"_{number}")) for number in range(6))
    assert set(row) == FIELDS
    assert (row["state"], row["outputs"], row["bytes"]) == ("stopped", 6, size)
    assert (row["staged"], row["staged_bytes"], row["uploaded"]) == (6, size, 0)
    assert row["unfinished"] == ["dataset images was never run to its end"]
    assert (row["owner"]["host"], row["owner"]["life"]) == ("test", "left")
    text = call("status", "--staging", staging)
    assert text.code == 1
    assert "NOT WELL" in text.out
    assert "never run to its end" in text.out
    assert touched(tmp_path) == before


def test_a_live_owner_is_seen_by_its_counter_and_its_run_is_well(staging: Path, tmp_path: Path) -> None:
    with driver_process("live", staging, str(tmp_path / "dest")) as process:
        heard(process.stdout, "waiting")
        answer = call("status", "--staging", staging, "--watch-s", 30, "--json")
        (row,) = answer.json["runs"]
        assert (answer.code, row["state"], row["owner"]["life"]) == (0, "running", "alive")
        assert row["owner"]["pid"] == process.pid
    beat = staging / "_ray_sink" / "_owner" / "beat-000001"
    assert status(staging)["state"] == "running"  # its last sign is some seconds old: nobody can know yet
    long_ago = beat.stat().st_mtime - 300
    os.utime(beat, (long_ago, long_ago))
    row = status(staging)
    assert (row["state"], row["owner"]["life"]) == ("stopped", "silent")  # type: ignore[index]
    assert "no sign of life for 300 s" in call("status", "--staging", staging, "--watch-s", 0).out


def test_the_torn_end_of_a_journal_that_is_being_written_is_left_out(staging: Path, tmp_path: Path) -> None:
    driver = Driver(staging, str(tmp_path / "dest"), "run-1")
    driver.write(range(4))
    driver.write(range(4, 6))
    (journal,) = driver.staging.journal_dir.iterdir()
    whole = journal.read_bytes()
    assert status(staging)["outputs"] == 6
    for torn in (whole[:-1], whole[:-40] + bytes(40), whole + b"\1\2\3"):
        journal.write_bytes(torn)
        assert status(staging)["outputs"] == (6 if torn.startswith(whole) else 4)


def test_uploaded_outputs_are_counted_once_whoever_uploaded_them(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 4, finished=False)
    assert call("upload", "--staging", staging).code == 0
    row = status(staging)
    assert (row["outputs"], row["uploaded"], row["staged"], row["staged_bytes"]) == (4, 4, 0, 0)
    assert row["uploaded_bytes"] == row["bytes"]
    staged_run(staging, str(dest), 6)  # two are new, and four are decided already
    row = status(staging)
    assert (row["outputs"], row["uploaded"], row["staged"]) == (6, 4, 2)
    assert row["conflicts"]["retries"] == 4  # type: ignore[index]
    assert "retries 4" in call("status", "--staging", staging).out


def test_failures_are_named_until_their_outputs_are_there_after_all(staging: Path, tmp_path: Path) -> None:
    driver = Driver(staging, str(tmp_path / "dest"), "run-1")
    driver.write(range(2))
    driver.ledger.failed({"runs/sample_0001": "was late", "runs/sample_0007": "no such dtype"})
    driver.leave()
    row = status(staging)
    assert row["failures"] == {"runs/sample_0007": "no such dtype"}
    assert "no such dtype" in call("status", "--staging", staging).out
    driver.staging.set_aside("000001.json", b'{"runs/sample_0000": "the bucket said no"}')
    assert set(status(staging)["failures"]) == {"runs/sample_0000", "runs/sample_0007"}  # type: ignore[call-overload]


def test_a_sealed_run_is_well_and_so_is_its_destination(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 4)
    assert call("upload", "--staging", staging).code == 0
    assert status(staging)["state"] == "sealed"
    answer = call("status", dest, "--json")
    (row,) = answer.json["runs"]
    assert (answer.code, row["state"], row["outputs"], row["uploaded"]) == (0, "sealed", 4, 4)
    assert row["staging"] == str(staging)


def test_a_bucket_tells_of_its_seals_and_of_who_claimed_it(
    staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    with driver_process("live", staging, s3_bucket.url) as process:
        heard(process.stdout, "waiting")
        answer = call("status", s3_bucket.url, "--watch-s", 30, "--json")
        (row,) = answer.json["runs"]
        assert (answer.code, row["state"], row["owner"]["pid"]) == (0, "running", process.pid)
        assert "only its journal" in row["unfinished"][0]
        assert "0 bytes" not in call("status", s3_bucket.url, "--watch-s", 30).out
    names = s3_bucket.names()
    answer = call("status", s3_bucket.url, "--watch-s", 0.5, "--json")
    (row,) = answer.json["runs"]
    assert (answer.code, row["state"], row["owner"]["life"]) == (1, "stopped", "silent")
    assert s3_bucket.names() == names
    assert call("upload", "--staging", staging, "--takeover-s", 1).code == 0
    driver = Driver(staging, s3_bucket.url, "run-1")
    driver.finish()
    driver.leave()
    # from the journal alone: whether a bucket holds the seal it does not ask
    assert call("upload", "--staging", staging).code == 0
    assert status(staging)["state"] == "committed"
    assert call("status", s3_bucket.url, "--json").json["runs"][0]["state"] == "sealed"


def test_a_run_with_node_local_staging_is_told_from_its_journal_at_the_destination(
    s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is left by a cluster that is gone: a claim, a journal, some outputs."""
    sign_in(monkeypatch, s3_bucket.server)
    store = open_store(s3_bucket.url, UploadOptions())
    store.probe()
    owner = Owner("run-1", "gone", 7, "nonce")
    claim([StorePlace(store)], owner, takeover_s=1, clock=time.monotonic, sleep=time.sleep)
    info = RunInfo("run-1", s3_bucket.url, "/nvme", "numpy_npy", "single")
    ledger = Ledger.open(JournalStaging(JournalObjects(store, "run-1"), "run-1"), info, 1, LedgerOptions())
    files = [FileRecord(f"{key}.npy", 100, "crc64nvme:0123456789abcdef") for key in "abc"]
    proposals = [
        Proposal(file.path[0], f"t-{file.path}", (TempFile(f"{ledger.term}/{file.path}", file),)) for file in files
    ]
    ledger.commit([(proposal, Verification.VERIFIED) for proposal in proposals])
    ledger.failed({"d": "it would not be encoded"})
    names = s3_bucket.names()
    answer = call("status", s3_bucket.url, "--watch-s", 0, "--json")
    (row,) = answer.json["runs"]
    assert (answer.code, row["state"], row["staging"]) == (1, "stopped", "/nvme")
    assert (row["outputs"], row["uploaded"], row["uploaded_bytes"], row["staged"]) == (3, 3, 300, 0)
    assert row["failures"] == {"d": "it would not be encoded"}
    assert row["owner"]["host"] == "gone"
    assert s3_bucket.names() == names


def told(*arguments: object) -> dict[str, object]:
    """The one run that `status` tells of, but for how long its owner is silent, which each look says anew."""
    (row,) = call("status", *arguments, "--watch-s", 0, "--json").json["runs"]
    assert row["owner"].pop("silent_s") >= 0
    return dict(row)


def test_a_folder_with_journals_tells_the_same_by_whatever_name_it_is_given(staging: Path, tmp_path: Path) -> None:
    """A run that is to stay in its staging folder has no other destination; and others forget to say --staging."""
    staged_run(staging, None, 6, finished=False)
    row = told(staging)
    assert row == told("--staging", staging)
    assert (row["state"], row["outputs"]) == ("stopped", 6)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    staged_run(elsewhere, str(tmp_path / "dest"), 4, finished=False)
    row = told(elsewhere)
    assert row == told("--staging", elsewhere)
    assert row == told(elsewhere, "--run", row["run_id"])


def test_no_run_is_a_no_and_wrong_use_is_said(staging: Path, tmp_path: Path) -> None:
    empty = call("status", "--staging", staging, "--json")
    assert (empty.code, empty.json["runs"]) == (1, [])
    assert call("status", "--staging", staging, "--run", "run-9").code == 1
    assert call("status").code == 2
    assert call("status", staging, "--staging", staging).code == 2
    missing = call("status", "--staging", tmp_path / "none")
    assert (missing.code, missing.err.count("\n")) == (1, 1)
