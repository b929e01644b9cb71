from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import ray_sink
from ray_sink.catalogue import read_book
from ray_sink.cli import output
from ray_sink.filesystem import PosixFilesystem
from ray_sink.manifest import Seal
from tests.cli.conftest import call, run
from tests.cli.runs import Driver, bytes_of, driver_process, heard, staged_run
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in


def decided(staging: Path) -> list[str]:
    return sorted(read_book(PosixFilesystem(), staging, "run-1").entries)


def outputs_in(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "_ray_sink" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected(keys: list[str]) -> dict[str, bytes]:
    return {f"{key}.npy": bytes_of(key) for key in keys}


def test_a_run_killed_half_way_is_finished_to_a_folder_byte_for_byte(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with driver_process("stream", staging, str(dest)) as process:
        acknowledged = [key for batch in heard(process.stdout, "acknowledged", 5) for key in batch]  # type: ignore[attr-defined]
        process.kill()
    answer = run("upload", "--staging", staging, "--takeover-s", 1, "--json")
    assert answer.code == 0, answer.err
    keys = decided(staging)
    assert set(acknowledged) <= set(keys)
    assert outputs_in(dest) == expected(keys)
    assert outputs_in(staging) == {}
    assert answer.json == {
        "run_id": "run-1",
        "dest": str(dest),
        "staging": str(staging),
        "ok": True,
        "state": "not sealed",
        "uploaded": len(keys),
        "uploaded_bytes": sum(map(len, expected(keys).values())),
        "freed_bytes": sum(map(len, expected(keys).values())),
        "aborted_multiparts": 0,
        "outputs": len(keys),
        "failures": {},
        "unfinished": ["an earlier driver left a dataset unfinished, and this one ran none: run the script again"],
    }
    again = run("upload", "--staging", staging, "--takeover-s", 1, "--json")
    assert (again.code, again.json["uploaded"], again.json["outputs"]) == (0, 0, len(keys))
    assert outputs_in(dest) == expected(keys)
    assert not (dest / "_ray_sink" / "run-1" / "_SUCCESS").exists()


def test_a_run_whose_driver_had_come_to_its_end_is_finished_in_a_bucket_and_sealed(
    staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    dest = f"{s3_bucket.url}/some/prefix"
    with driver_process("finished", staging, dest) as process:
        heard(process.stdout, "waiting")
    answer = run("upload", "--staging", staging, "--dest", f"{dest}/", "--takeover-s", 1, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["state"] == "sealed"
    assert answer.json["outputs"] == answer.json["uploaded"] == 24
    keys = decided(staging)
    names = [name for name in s3_bucket.names() if "_ray_sink" not in name]
    assert {n.removeprefix("some/prefix/"): s3_bucket.read(n) for n in names} == expected(keys)
    assert list(ray_sink.open(dest).keys()) == keys
    assert outputs_in(staging) == {}
    before = s3_bucket.names()
    again = run("upload", "--staging", staging, "--json")
    assert (again.code, again.json["state"], again.json["uploaded"]) == (0, "already sealed", 0)
    assert s3_bucket.names() == before
    assert call("verify", dest).code == 0


def test_what_was_decided_and_not_published_is_rolled_forward(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with driver_process("hanging", staging, str(dest)) as process:
        (keys,) = heard(process.stdout, "decided")
    assert outputs_in(staging) == {}
    answer = run("upload", "--staging", staging, "--takeover-s", 1, "--json")
    assert answer.code == 0, answer.err
    assert outputs_in(dest) == expected(keys)  # type: ignore[arg-type]


def test_a_live_owner_is_left_alone(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    with driver_process("live", staging, str(dest)) as process:
        heard(process.stdout, "waiting")
        before = outputs_in(staging)
        answer = run("upload", "--staging", staging, "--takeover-s", 2, "--json")
        assert answer.code == 1
        assert "is alive" in answer.err
        assert "Traceback" not in answer.err
        assert answer.out == ""
        assert outputs_in(staging) == before
        assert process.poll() is None
    assert run("upload", "--staging", staging, "--takeover-s", 1).code == 0
    assert outputs_in(dest) == before


def test_multipart_uploads_of_a_dead_owner_are_aborted_and_others_are_not(
    staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    client = s3_bucket.server.client()
    ours, theirs = (
        client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)["UploadId"] for key in ("ours.npy", "theirs")
    )
    with driver_process("multipart", staging, s3_bucket.url, told=f"ours.npy {ours}\n") as process:
        heard(process.stdout, "acknowledged")
    answer = call("upload", "--staging", staging, "--takeover-s", 1, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["aborted_multiparts"] == 1
    left = client.list_multipart_uploads(Bucket=s3_bucket.name).get("Uploads", [])
    assert [upload["UploadId"] for upload in left] == [theirs]


def test_an_unfinished_run_is_uploaded_and_never_sealed(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 6, finished=False)
    answer = call("upload", "--staging", staging, "--json")
    assert (answer.code, answer.json["state"], answer.json["uploaded"]) == (0, "not sealed", 6)
    assert not (dest / "_ray_sink/run-1/_SUCCESS").exists()


def test_a_run_between_two_datasets_is_not_taken_for_complete(staging: Path, tmp_path: Path) -> None:
    driver = Driver(staging, str(tmp_path / "dest"), "run-1")
    driver.write(range(4))
    driver.finish()
    driver.write(range(4, 8))  # the script went on
    driver.leave()
    assert call("upload", "--staging", staging, "--json").json["state"] == "not sealed"


def test_a_run_whose_staging_is_its_destination_is_published_and_sealed(staging: Path) -> None:
    staged_run(staging, None, 6)
    answer = call("upload", "--staging", staging, "--json")
    assert (answer.code, answer.json["state"], answer.json["uploaded"]) == (0, "sealed", 0)
    assert len(outputs_in(staging)) == 6
    assert call("verify", staging).code == 0


def test_rows_of_the_driver_that_ran_them_are_in_the_seal(staging: Path, tmp_path: Path) -> None:
    from ray_sink.records import RowCounts

    driver = Driver(staging, str(tmp_path / "dest"), "run-1")
    driver.write(range(4))
    driver.ledger.rows("images", "out:0", RowCounts(4, 4, 0))
    driver.finish()
    driver.leave()
    assert call("upload", "--staging", staging).code == 0
    seal = Seal.from_json((tmp_path / "dest/_ray_sink/run-1/_SUCCESS").read_bytes())
    assert seal.rows == RowCounts(4, 4, 0)


def test_somebody_elses_object_is_named_and_its_output_stays_staged(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 4)
    (dest / "runs").mkdir()
    (dest / "runs/sample_0002.npy").write_bytes(b"theirs")
    answer = call("upload", "--staging", staging, "--json")
    assert answer.code == 1
    assert answer.json["state"] == "not sealed"
    assert list(answer.json["failures"]) == ["runs/sample_0002"]
    assert list(outputs_in(staging)) == ["runs/sample_0002.npy"]
    assert (dest / "runs/sample_0002.npy").read_bytes() == b"theirs"
    replaced = call("upload", "--staging", staging, "--on-conflict", "replace", "--json")
    assert (replaced.code, replaced.json["state"], replaced.json["uploaded"]) == (0, "sealed", 1)
    assert outputs_in(dest) == expected(decided(staging))


def test_staged_files_stay_when_asked(staging: Path, tmp_path: Path) -> None:
    staged_run(staging, str(tmp_path / "dest"), 4)
    answer = call("upload", "--staging", staging, "--keep-staged", "--json")
    assert answer.json["freed_bytes"] == 0
    assert outputs_in(staging) == outputs_in(tmp_path / "dest") != {}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 1, "name one with --run"),
        (["--run", "run-9"], 1, "not 'run-9'"),
        (["--run", "run-1", "--dest", "/elsewhere"], 1, "--dest is /elsewhere"),
        (["--run", "run-1", "--storage-option", "secret=x"], 2, "looks like a secret"),
        (["--run", "run-1", "--storage-option", "novalue"], 2, "NAME=VALUE"),
        (["--run", "run-1", "--takeover-s", "0"], 2, "takeover"),
    ],
)
def test_wrong_use_is_said_in_one_sentence_and_nothing_is_touched(
    staging: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    for number in (1, 2):
        staged_run(staging, str(tmp_path / f"dest-{number}"), 2, run_id=f"run-{number}")
    before = sorted(map(str, tmp_path.rglob("*")))
    answer = call("upload", "--staging", staging, *arguments)
    assert answer.code == code
    assert words in answer.err
    assert answer.out == ""
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_staging_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    answer = run("upload", "--staging", tmp_path / "none")
    assert answer.code == 1
    assert answer.err.startswith("Error: there is no staging folder")
    assert answer.err.count("\n") == 1


def test_a_destination_that_cannot_be_reached_leaves_everything_staged(
    staging: Path, monkeypatch: pytest.MonkeyPatch, s3_bucket: S3Bucket
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    staged_run(staging, s3_bucket.url, 2)
    answer = call("upload", "--staging", staging, "--endpoint-url", "http://127.0.0.1:9", "--json")
    assert answer.code == 1
    assert "no answer" in answer.err
    assert len(outputs_in(staging)) == 2
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in answer.err
    assert json.loads(call("upload", "--staging", staging, "--json").out)["state"] == "sealed"


def test_where_there_is_no_terminal_lines_tell_how_far_it_is(
    staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "dest"
    staged_run(staging, str(dest), 8)
    monkeypatch.setattr(output, "_LINE_EVERY_S", 0.0)
    uploaded = call("upload", "--staging", staging, "--json")
    every = output.size(uploaded.json["uploaded_bytes"])
    assert f"uploading: {every} of {every}" in uploaded.err
    checked = call("verify", dest)
    assert f"checking: 0 bytes of {every}\n" in checked.err
    assert f"checking: {every} of {every}" in checked.err
    monkeypatch.undo()
    assert call("verify", dest).err == "", "short ones say nothing"
