from __future__ import annotations

from pathlib import Path

import pytest

from ray_sink import manifest
from tests.cli.conftest import call, run, started
from tests.cli.runs import bytes_of, sealed_run, staged_run

RUN_FIELDS = {
    *("run_id", "outputs", "files", "bytes", "verification", "epoch"),
    *("save_format", "dict_mode", "fingerprint", "rows", "conflicts"),
}


def sealed(staging: Path, dest: Path, run_id: str, count: int) -> None:
    staged_run(staging, str(dest), count, run_id=run_id)
    assert call("upload", "--staging", staging, "--run", run_id, "--on-conflict", "replace").code == 0


def test_sealed_runs_and_their_outputs_are_listed(staging: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    sealed(staging, dest, "run-1", 4)
    sealed(staging, dest, "run-2", 6)
    answer = run("ls", dest, "--json")
    assert answer.code == 0, answer.err
    assert [(row["run_id"], row["outputs"]) for row in answer.json["runs"]] == [("run-1", 4), ("run-2", 6)]
    assert set(answer.json) == {"dest", "runs"}
    assert all(set(row) == RUN_FIELDS for row in answer.json["runs"])
    assert "run-2" in call("ls", dest).out
    one = call("ls", dest, "--run", "run-2", "--prefix", "runs/sample_0005", "--json").json
    assert (one["dest"], one["run_id"]) == (str(dest), "run-2")
    (row,) = one["outputs"]
    assert (row["key"], row["state"], row["verification"]) == ("runs/sample_0005", "uploaded", "verified")
    assert row["bytes"] == len(bytes_of("_5")) == row["files"][0]["bytes"]
    assert row["files"][0]["uri"] == f"{dest}/runs/sample_0005.npy"
    assert len(call("ls", dest, "--run", "run-1").out.splitlines()) == 4
    assert "crc64nvme:" in call("ls", dest, "--run", "run-1", "--long").out
    assert call("ls", dest, "--prefix", "runs").code == 1


def test_nothing_is_an_empty_list(tmp_path: Path) -> None:
    assert call("ls", tmp_path, "--json").json == {"dest": str(tmp_path), "runs": []}
    assert call("ls", "--staging", tmp_path, "--json").json == {"staging": str(tmp_path), "runs": []}
    assert "no sealed run" in call("ls", tmp_path).out


def test_a_staging_folder_tells_where_its_run_stands_and_is_not_touched(staging: Path, tmp_path: Path) -> None:
    staged_run(staging, str(tmp_path / "dest"), 4, finished=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    answer = run("ls", "--staging", staging, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.json["runs"]
    pending_bytes = sum(len(bytes_of(f"_{number}")) for number in range(4))
    assert row == {
        "run_id": "run-1",
        "dest": str(tmp_path / "dest"),
        "save_format": "numpy_npy",
        "epoch": 1,
        "decided": 4,
        "uploaded": 0,
        "pending": 4,
        "pending_bytes": pending_bytes,
        "kept": 0,
        "multiparts": 0,
        "closing": False,
        "unfinished": ["dataset images was never run to its end"],
        "owner": row["owner"],
        "released": True,
    }
    assert "on test" in row["owner"]
    outputs = call("ls", "--staging", staging, "--run", "run-1", "--json").json["outputs"]
    assert (outputs[0]["key"], outputs[0]["state"]) == ("runs/sample_0000", "staged")
    assert "never run to its end" in call("ls", "--staging", staging, "--run", "run-1").out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_it_is_either_a_destination_or_a_staging_folder(staging: Path) -> None:
    assert call("ls").code == 2
    assert call("ls", staging, "--staging", staging).code == 2


def test_whoever_has_read_enough_may_close_the_pipe(tmp_path: Path) -> None:
    with started("ls", sealed_run(tmp_path / "dest", 4000), "--run", "run-1") as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert "sample_0000" in listing.stdout.readline()
        listing.stdout.close()
        assert listing.stderr.read() == ""
        assert listing.wait(60) == 1


def test_a_prefix_finds_the_same_by_the_journal_and_by_the_manifest(
    staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_ROWS_A_GROUP", 5)
    dest = tmp_path / "dest"
    sealed(staging, dest, "run-1", 12)
    for where in (("--staging", staging), (dest,)):
        outputs = call("ls", *where, "--prefix", "runs/sample_001", "--json").json["outputs"]
        assert [(row["key"], row["state"]) for row in outputs] == [
            ("runs/sample_0010", "uploaded"),
            ("runs/sample_0011", "uploaded"),
        ]
        assert len(call("ls", *where, "--prefix", "runs/sample_00", "--json").json["outputs"]) == 12
        assert call("ls", *where, "--prefix", "none", "--json").json["outputs"] == []
