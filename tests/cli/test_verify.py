from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import call, run
from tests.cli.runs import bytes_of, staged_run
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in


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
