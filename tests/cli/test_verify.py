from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import call, run, started
from tests.cli.runs import bytes_of, sealed_run, staged_run
from tests.faults.s3_proxy import Proxy, answer
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in
from tests.waiting import until


@pytest.fixture
def dest(staging: Path, tmp_path: Path) -> Path:
    """A sealed run of eight outputs in a folder."""
    folder = tmp_path / "dest"
    staged_run(staging, str(folder), 8)
    assert call("upload", "--staging", staging).code == 0
    return folder


def test_a_whole_run_is_ok_in_a_process_without_ray(dest: Path) -> None:
    answer = run("verify", dest, "--json", "--extra")
    assert answer.code == 0, answer.err
    size = sum(len(bytes_of(f"_{number}")) for number in range(8))
    assert answer.json == {
        "dest": str(dest),
        "ok": True,
        "checked": "checksums",
        "resumed": 0,
        "runs": [{"ok": True, "run_id": "run-1", "outputs": 8, "files": 8, "bytes": size, "problems": []}],
        "extra": [],
    }
    assert "ok; 8 outputs" in call("verify", dest).out


def test_missing_and_changed_objects_are_named(dest: Path) -> None:
    (dest / "runs/sample_0001.npy").unlink()
    changed = dest / "runs/sample_0002.npy"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    answer = call("verify", dest, "--json")
    assert answer.code == 1
    assert answer.json["ok"] is False
    (verdict,) = answer.json["runs"]
    found = {(problem["key"], problem["path"], problem["trouble"]) for problem in verdict["problems"]}
    assert found == {
        ("runs/sample_0001", "runs/sample_0001.npy", "missing"),
        ("runs/sample_0002", "runs/sample_0002.npy", "differs"),
    }
    text = call("verify", dest)
    assert text.code == 1
    assert "missing: runs/sample_0001" in text.out
    assert "differs: runs/sample_0002" in text.out


def test_quick_sees_a_wrong_size_and_not_a_flipped_bit(dest: Path) -> None:
    one = dest / "runs/sample_0001.npy"
    data = bytearray(one.read_bytes())
    data[-1] ^= 1
    one.write_bytes(data)
    assert call("verify", dest, "--quick").code == 0
    one.write_bytes(data[:-1])
    answer = call("verify", dest, "--quick", "--json")
    assert answer.code == 1
    assert answer.json["checked"] == "sizes"
    assert [problem["trouble"] for problem in answer.json["runs"][0]["problems"]] == ["differs"]


def test_extra_objects_are_named_when_asked(dest: Path) -> None:
    (dest / "runs/stranger.bin").write_bytes(b"123")
    assert call("verify", dest).code == 0
    answer = call("verify", dest, "--extra", "--json")
    assert answer.code == 1
    assert answer.json["extra"] == [{"path": "runs/stranger.bin", "bytes": 3}]


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_a_damaged_manifest_is_a_problem_of_the_run(dest: Path, quick: list[str]) -> None:
    (manifest,) = (dest / "_ray_sink/run-1").glob("manifest-*.parquet")
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data)
    answer = call("verify", dest, "--json", "--extra", *quick)
    assert answer.code == 1
    (problem,) = answer.json["runs"][0]["problems"]
    assert (problem["key"], problem["trouble"]) == (None, "differs")
    assert problem["path"] == f"_ray_sink/run-1/{manifest.name}"
    assert answer.json["extra"] is None
    manifest.unlink()
    assert call("verify", dest, "--json").json["runs"][0]["problems"][0]["trouble"] == "missing"


def test_a_damaged_seal_is_a_problem_of_the_run(dest: Path) -> None:
    (dest / "_ray_sink/run-1/_SUCCESS").write_text("{")
    answer = call("verify", dest, "--json")
    assert answer.code == 1
    assert answer.json["runs"][0]["problems"][0]["path"] == "_ray_sink/run-1/_SUCCESS"


def test_no_sealed_run_is_a_no(tmp_path: Path) -> None:
    answer = call("verify", tmp_path)
    assert answer.code == 1
    assert "has no sealed run" in answer.err
    assert call("verify", tmp_path, "--run", "run-7").code == 1


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_a_bucket_is_verified_through_both_engines(
    staging: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    dest = f"{s3_bucket.url}/runs/1"
    staged_run(staging, dest, 8)
    assert call("upload", "--staging", staging, "--engine", engine).code == 0
    assert call("verify", dest, "--engine", engine, "--extra").code == 0
    client = s3_bucket.server.client()
    client.delete_object(Bucket=s3_bucket.name, Key="runs/1/runs/sample_0003.npy")
    client.put_object(Bucket=s3_bucket.name, Key="runs/1/runs/sample_0004.npy", Body=b"other")
    for quick in ([], ["--quick"]):
        answer = call("verify", dest, "--engine", engine, "--json", *quick)
        assert answer.code == 1
        found = {(problem["key"], problem["trouble"]) for problem in answer.json["runs"][0]["problems"]}
        assert found == {("runs/sample_0003", "missing"), ("runs/sample_0004", "differs")}


ENDLESS_BYTES = 2**40  # without a block on the disk, and minutes to read


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sealed run of two pieces."""
    return sealed_run(tmp_path / "large", 4196)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def troubles(answer: object) -> dict[str, str]:
    return {p["key"]: p["trouble"] for run in answer["runs"] for p in run["problems"]}  # type: ignore[index]


def test_one_that_was_killed_goes_on_and_the_next_begins_anew(large: Path, tmp_path: Path) -> None:
    noted, last = tmp_path / "noted", large / "runs/sample_4195.npy"
    data = last.read_bytes()
    os.truncate(last, ENDLESS_BYTES)
    with started("verify", large, "--resume", noted) as verifying:
        until(lambda: noted.exists() and noted.read_bytes().count(b"\n") == 2, deadline_s=180)
        assert call("verify", large, "--resume", noted).code == 2, "two at a time"
        verifying.kill()
    last.write_bytes(data)
    flip(large / "runs/sample_0000.npy")
    flip(last)
    resumed = call("verify", large, "--resume", noted, "--json")
    assert (resumed.code, resumed.json["resumed"]) == (1, 4096)
    assert resumed.json["runs"][0]["outputs"] == 4196
    assert troubles(resumed.json) == {"runs/sample_4195": "differs"}
    assert not noted.exists()
    anew = call("verify", large, "--resume", noted, "--json")
    assert (anew.code, anew.json["resumed"]) == (1, 0)
    assert troubles(anew.json) == {"runs/sample_0000": "differs", "runs/sample_4195": "differs"}


def test_an_interrupted_one_says_so_and_waits_for_no_object(large: Path, tmp_path: Path) -> None:
    os.truncate(large / "runs/sample_4195.npy", ENDLESS_BYTES)
    noted = tmp_path / "noted"
    with started("verify", large, "--resume", noted) as verifying:
        until(lambda: noted.exists() and noted.read_bytes().count(b"\n") == 2, deadline_s=180)
        verifying.send_signal(signal.SIGINT)
        out, err = verifying.communicate(timeout=120)
    assert (verifying.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "interrupted" in err


def test_an_object_that_cannot_be_read_is_one_problem_and_tried_again(
    staging: Path, tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(monkeypatch, s3_bucket.server)
    dest, noted = f"{s3_bucket.url}/runs/1", tmp_path / "noted"
    staged_run(staging, dest, 8)
    assert call("upload", "--staging", staging).code == 0
    with Proxy(s3_bucket.server) as proxy:
        fault = proxy.on("GetObject", answer(403, "AccessDenied"), key="sample_0003.npy", times=None)
        through = ("verify", dest, "--endpoint-url", proxy.endpoint, "--resume", noted, "--json")
        told = call(*through)
        assert fault.fired > 0
        assert told.code == 1
        assert troubles(told.json) == {"runs/sample_0003": "unreadable"}
        fault.lift()
        again = call(*through)
    assert (again.code, again.json["resumed"]) == (0, 0)
    assert not noted.exists()


def test_a_file_that_is_not_its_own_is_left_alone(dest: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("once upon a time\n")
    answer = call("verify", dest, "--resume", precious)
    assert answer.code == 2
    assert "thesis.txt" in answer.err
    assert precious.read_text() == "once upon a time\n"
    assert call("verify", dest, "--resume", precious, "--quick").code == 2
