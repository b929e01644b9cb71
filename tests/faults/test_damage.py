"""What lies on a disk between two runs is changed: journals, staged files, their times, names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_sink.journal import read_journal
from ray_sink.manifest import Seal
from tests.faults.invariants import Folder, outputs_in
from tests.faults.plan import Plan
from tests.faults.processes import KILLED, Injection, Jobs
from tests.faults.runs import Run

PLAN = Plan(outputs=6)
NAMES = ("--nonce", "x", "--batch", 1)
DAY_S = 86_400


def killed_half_way(run: Run) -> Path:
    """The run, killed when it wants to stage the fifth output; its journal."""
    temp = run.staging / "_ray_sink/run-1/tmp/000001.001/0004-x.0"
    job = run.disturbed(inject=[Injection("openat", "signal=KILL", "1")], paths=[temp])
    assert job.wait() == KILLED
    assert len(job.said("acknowledged")) == 4
    return run.staging / "_ray_sink/run-1/journal/000001.001"


@pytest.mark.row(40)
@pytest.mark.parametrize("left", ["all of it", "half of it", "its header", "half of its header", "zeros"])
def test_a_torn_end_of_a_journal_is_dropped(jobs: Jobs, tmp_path: Path, left: str) -> None:
    """The power goes between a record's write and its fsync."""
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=False)
    journal = run.staging / "_ray_sink/run-1/journal/000001.001"
    # the journal's head, its beginning, the dataset, four decisions
    job = run.disturbed(inject=[Injection("fsync", "signal=KILL", "7")], paths=[journal])
    assert job.wait() == KILLED
    data = journal.read_bytes()
    *_, before, last = read_journal(data, name="journal")
    assert last.payload["batch"][0][0] == PLAN.key(3)
    size = {"all of it": last.end, "half of it": (before.end + last.end) // 2}.get(left, before.end + 16)
    torn = data[: before.end + 8] if left == "half of its header" else data[:size]
    if left == "zeros":
        torn += bytes(last.end - len(torn))
    journal.write_bytes(torn)
    run.again("--nonce", "y")


@pytest.mark.row(40)
def test_a_flipped_bit_in_a_journal_is_a_loud_error_and_nothing_is_touched(jobs: Jobs, tmp_path: Path) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=False)
    journal = killed_half_way(run)
    whole = journal.read_bytes()
    for at in (12, len(whole) // 2, len(whole) - 5):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        before = outputs_in(run.checker.staging)
        job = run.start("--takeover-s", 0.1)
        assert run.hear(job) == 1
        ((kind, message),) = job.said("error")
        assert kind == "JournalCorruptError"
        assert "000001.001" in message
        assert outputs_in(run.checker.staging) == before
    journal.write_bytes(whole)
    run.again("--nonce", "y")


@pytest.mark.row(41)
@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:99] + b"?" + data[100:], lambda data: b""],
    ids=["cut", "longer", "one byte", "empty"],
)
def test_a_staged_file_that_was_changed_is_named_and_not_uploaded(
    jobs: Jobs, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, "--concurrency", 1)
    name = f"{PLAN.key(0)}.npy"
    staged = run.staging / name
    # the first that opens a staged file is its uploader
    job = run.start("--takeover-s", 60, inject=[Injection("openat", "signal=KILL", "1")], paths=[staged])
    assert run.hear(job) == KILLED
    right = staged.read_bytes()
    staged.write_bytes(change(right))
    job = run.start("--takeover-s", 0.1, "--nonce", "y")
    assert job.wait() == 1
    ((kind, message),) = job.said("error")
    assert kind == "OutputsFailed"
    assert PLAN.key(0) in message
    assert "its receipt says" in message
    assert name not in outputs_in(run.checker.dest)
    assert staged.read_bytes() == change(right), "it stays for whoever wants to see what happened"
    staged.write_bytes(right)
    run.again("--nonce", "z")


@pytest.mark.row(37)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
@pytest.mark.parametrize("days", [-1, 1])
def test_files_of_another_day_are_as_good(jobs: Jobs, tmp_path: Path, with_dest: bool, days: int) -> None:
    """After the owner's death every time stamp on the disk is a day off, either way."""
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, with_dest=with_dest)
    killed_half_way(run)
    then_s = time.time() + days * DAY_S
    for folder, folders, names in os.walk(tmp_path / "run"):
        for name in (*folders, *names):
            os.utime(os.path.join(folder, name), (then_s, then_s))
    run.again("--nonce", "y")


@pytest.mark.row(38)
def test_a_batch_that_comes_again_after_it_was_freed_gets_the_same_receipts(jobs: Jobs, tmp_path: Path) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES)
    manifest = run.checker.dest.root / "_ray_sink/run-1"  # type: ignore[attr-defined]
    job = run.disturbed(inject=[Injection("mkdir", "signal=KILL", "1")], paths=[manifest])
    assert job.wait() == KILLED
    assert len(job.said("uploaded")) == PLAN.outputs
    assert outputs_in(run.checker.staging) == {}
    again = run.again("--again", "--nonce", "y")
    assert len(again.said("acknowledged")) == PLAN.outputs
    assert again.said("uploaded") == [], "nothing is uploaded twice"
    assert Seal.from_json((manifest / "_SUCCESS").read_bytes()).conflicts.retries == PLAN.outputs


@pytest.mark.row(38)
@pytest.mark.parametrize("with_dest", [False, True], ids=["staging", "folder"])
def test_every_batch_twice_at_once_is_one_output_each(jobs: Jobs, tmp_path: Path, with_dest: bool) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, "--batch", 2, "--writers", 2, "--twice", with_dest=with_dest)
    job = run.again()
    assert len(job.said("acknowledged")) == 2 * PLAN.outputs
    assert len(job.said("uploaded")) == (PLAN.outputs if with_dest else 0)
    seal = run.checker.finished()
    assert (seal.outputs, seal.conflicts.retries, seal.conflicts.retries_differing) == (PLAN.outputs, PLAN.outputs, 0)


BAD_KEYS = ["../out", "a/../../out", "/out", "a//b", "nul\0", "x" * 300, "_ray_sink/run-1/journal/x", "./a", "a\\b", ""]


@pytest.mark.row(45)
def test_keys_that_lead_elsewhere_are_refused_by_name_and_nothing_is_there(jobs: Jobs, tmp_path: Path) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES, "--keys", *BAD_KEYS)
    job = run.start("--takeover-s", 0.1)
    assert run.hear(job) == 1
    assert job.said("failed") == BAD_KEYS
    assert {kind for fact in job.said() if "failed" in fact for kind in fact["error"][:1]} == {"InvalidKeyError"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["dest", "staging"]
    assert len(job.said("uploaded")) == PLAN.outputs
    run.more = NAMES
    run.again()


@pytest.mark.row(45)
@pytest.mark.parametrize("place", ["staging", "dest"])
def test_a_symlink_inside_the_root_is_not_followed(jobs: Jobs, tmp_path: Path, place: str) -> None:
    run = Run.at(jobs, tmp_path / "run", PLAN, *NAMES)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / place / "runs").mkdir()
    link = tmp_path / "run" / place / "runs/part_0"
    link.symlink_to(outside)
    job = run.start("--takeover-s", 0.1)
    assert job.wait() == 1
    _, message = job.said()[-1]["error"]
    keys = {PLAN.key(0), PLAN.key(3)}
    assert {key for key in job.said("accepted") if key in job.said("failed") or key in message} == keys
    assert str(link) in message
    assert Folder(outside).names() == []
    link.unlink()
    run.again("--nonce", "y")
