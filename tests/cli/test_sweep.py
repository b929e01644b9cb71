from __future__ import annotations

from pathlib import Path

import pytest

from ray_sink.sweeping import leavings
from tests.cli.conftest import call, run
from tests.cli.runs import Driver, bytes_of, driver_process, heard, staged_run
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def outputs(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.npy") if "_ray_sink" not in path.parts}


def leave_behind(staging: Path, dest: str) -> None:
    """A driver that is gone with a temp in its hands, and a probe of somebody else's."""
    driver = Driver(staging, dest, "run-1")
    driver.write(range(2))
    driver.staging.stage(driver.ledger.term, "attempt.0", "runs/sample_0009.npy", [b"never decided"])
    (staging / "_ray_sink" / "probe-0123456789abcdef").write_bytes(b"probe")
    (staging / "_ray_sink" / "_owner" / ".epoch-000001.0123456789ab").write_bytes(b"temp of a claim")
    driver.leave()


def test_what_a_dead_run_left_is_named_then_removed_and_the_run_still_resumes(staging: Path, tmp_path: Path) -> None:
    leave_behind(staging, str(tmp_path / "dest"))
    before = names(tmp_path)
    dry = run("sweep", "--staging", staging, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    (row,) = dry.json["runs"]
    assert (row["temps"], row["unpublished"]) == (["tmp/000001.001/attempt.0"], [])
    assert row["probes"] == ["probe-0123456789abcdef", "_owner/.epoch-000001.0123456789ab"]
    assert row["bytes"] == len(b"never decided") + len(b"probe") + len(b"temp of a claim")
    assert row["swept"] is False
    assert names(tmp_path) == before
    done = call("sweep", "--staging", staging, "--takeover-s", 1, "--json")
    assert (done.code, done.json["runs"][0]["swept"]) == (0, True)
    assert not leavings(staging, "run-1")
    assert outputs(staging) == {"sample_0000.npy", "sample_0001.npy"}
    assert "nothing to remove" in call("sweep", "--staging", staging).out
    staged_run(staging, str(tmp_path / "dest"), 3)
    assert call("upload", "--staging", staging, "--json").json["outputs"] == 3


def test_decided_outputs_that_were_not_published_are_published(staging: Path, tmp_path: Path) -> None:
    with driver_process("hanging", staging, str(tmp_path / "dest")) as process:
        (keys,) = heard(process.stdout, "decided")
    (left,) = call("sweep", "--staging", staging, "--dry-run", "--json").json["runs"]
    assert (len(left["unpublished"]), left["temps"]) == (len(keys), [])  # type: ignore[arg-type]
    assert "published 4 file(s)" in call("sweep", "--staging", staging, "--takeover-s", 1).out
    assert {path.name: path.read_bytes() for path in staging.rglob("runs/*.npy")} == {
        f"{key.rpartition('/')[2]}.npy": bytes_of(key)
        for key in keys  # type: ignore[attr-defined]
    }


def test_a_live_owner_is_left_alone(staging: Path, tmp_path: Path) -> None:
    with driver_process("live", staging, str(tmp_path / "dest")) as process:
        heard(process.stdout, "waiting")
        (temps,) = (staging / "_ray_sink" / "run-1" / "tmp").iterdir()
        (temps / "live.0").write_bytes(b"still being written")
        before = names(staging)
        answer = call("sweep", "--staging", staging, "--takeover-s", 2)
        assert answer.code == 1
        assert "is alive" in answer.err
        assert {name for name in names(staging) if "beat-" not in name} == {n for n in before if "beat-" not in n}
        assert process.poll() is None
    assert call("sweep", "--staging", staging, "--takeover-s", 1).code == 0
    assert not temps.exists()


def test_own_uploads_in_parts_are_aborted_once_and_others_are_not(
    staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    client = s3_bucket.server.client()
    ours, theirs = (
        client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)["UploadId"] for key in ("ours.npy", "theirs")
    )
    with driver_process("multipart", staging, s3_bucket.url, told=f"ours.npy {ours}\n") as process:
        heard(process.stdout, "acknowledged")
    assert "1 upload(s) in parts" in call("sweep", "--staging", staging, "--takeover-s", 1).out
    left = client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads", [])
    assert [upload["UploadId"] for upload in left] == [theirs]
    assert not leavings(staging, "run-1")


def test_a_sealed_run_is_swept_without_being_opened_again(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 4)
    assert call("upload", "--staging", staging).code == 0
    late = staging / "_ray_sink" / "run-1" / "tmp" / "000001.001"
    late.mkdir()
    (late / "late.0").write_bytes(b"of a writer that woke up")
    before = names(dest)
    assert call("sweep", "--staging", staging, "--takeover-s", 1).code == 0
    assert not late.exists()
    assert {name for name in names(dest) if "_owner" not in name} == {n for n in before if "_owner" not in n}
    assert call("verify", dest).code == 0
    assert call("status", "--staging", staging).code == 0


def test_an_empty_folder_is_fine_and_a_missing_one_is_said(staging: Path, tmp_path: Path) -> None:
    assert call("sweep", "--staging", staging, "--json").json["runs"] == []
    missing = call("sweep", "--staging", tmp_path / "none")
    assert (missing.code, missing.err.count("\n")) == (1, 1)
