"""The suite's own eyes: they must see what they are there for."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from tests.faults.invariants import Checker, Folder, Reader
from tests.faults.plan import Plan
from tests.faults.processes import Call, Jobs
from tests.faults.runs import fire
from tests.waiting import until

PLAN = Plan(outputs=6, split=True)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("staging", "dest"):
        (tmp_path / name).mkdir()
    return tmp_path / "staging", tmp_path / "dest"


@pytest.fixture
def finished(jobs: Jobs, folders: tuple[Path, Path]) -> Checker:
    staging, dest = folders
    checker = Checker(staging, Folder(dest), "run-1", PLAN.contents())
    with Reader(checker) as reader:
        job = jobs.run("--staging", staging, "--dest", dest, "--outputs", 6, "--split")
    assert job.wait() == 0
    assert reader.seen > 0
    checker.hear(job.said())
    assert checker.finished().outputs == len(checker.receipts) == 6
    return checker


def a_file(checker: Checker) -> Path:
    assert isinstance(checker.dest, Folder)
    return checker.dest.root / next(iter(PLAN.contents()))


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        (lambda c: a_file(c).unlink(), "I1"),
        (lambda c: a_file(c).write_bytes(a_file(c).read_bytes()[:-1]), "I2"),
        (lambda c: (a_file(c).parent / "more.npy").write_bytes(b""), "I2"),
        (lambda c: (c.staging.root / "_ray_sink/run-1/left").touch(), "I4"),
        (lambda c: c.hear([{"acknowledged": PLAN.key(0), "attempt": "another", "files": {}}]), "P3"),
        (lambda c: next(c.dest.root.rglob("_SUCCESS")).unlink(), "not sealed"),
        (lambda c: next(c.dest.root.rglob("manifest*")).unlink(), "manifest"),
    ],
)
def test_damage_is_seen(finished: Checker, damage: object, invariant: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError), match=invariant):  # noqa: PT012 - either may see it
        damage(finished)  # type: ignore[operator]
        finished.finished()


def test_a_sink_that_writes_in_the_open_is_caught_by_the_reader(tmp_path: Path) -> None:
    """What ``shutil.move`` does between two filesystems: it copies under the final name."""
    (tmp_path / "staging").mkdir()
    data = bytes(range(256)) * 40_000
    source = tmp_path / "whole"
    source.write_bytes(data)
    checker = Checker(tmp_path / "staging", None, "run-1", {"out.npy": data})
    ended = threading.Event()

    def naive() -> None:
        while not ended.is_set():
            (tmp_path / "staging/out.npy").unlink(missing_ok=True)
            with open(source, "rb") as file, open(tmp_path / "staging/out.npy", "wb") as target:
                shutil.copyfileobj(file, target, 2**16)

    writing = threading.Thread(target=naive)
    with pytest.raises(AssertionError, match="I2"), Reader(checker) as reader:  # noqa: PT012 - it raises on leaving
        writing.start()
        try:
            until(lambda: reader.found_something)
        finally:
            ended.set()
            writing.join()


def test_a_fault_that_never_fires_is_no_success(tmp_path: Path) -> None:
    call, tried = Call(tid=1, name="fsync", text="", number=9, on_path=3), list[tuple[int, int]]()

    def never(chosen: Call, folder: Path) -> bool:
        tried.append((chosen.number, chosen.on_path))
        return False

    with pytest.raises(AssertionError, match="nothing fired"):
        fire(call, tmp_path, never, in_turns=True)
    assert tried == [(9, 3), (9, 3), (4, 1), (2, 1), (1, 1), (1, 1)]
    with pytest.raises(AssertionError, match="nothing fired"):
        fire(call, tmp_path, never, in_turns=False)
    assert len(tried) == 7
