"""The staging folder on a real filesystem; crashes in between are the model tests' matter."""

from __future__ import annotations

import array
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_sink.checksum import checksum_of
from ray_sink.errors import StagingError
from ray_sink.filesystem import Buffer, NewFile, PosixFilesystem
from ray_sink.records import FileRecord, Proposal, TempFile
from ray_sink.staging import Staging
from ray_sink.terms import term_name

TERM = term_name(1, 1)


class Faulty(PosixFilesystem):
    """Fails once, at the named operation, and remembers that it did."""

    def __init__(self) -> None:
        self.fail: str | None = None
        self.code = errno.EIO
        self.fired = 0
        self.synced: list[Path] = []
        self.done_first = False
        self.renames = 0

    def trip(self, operation: str) -> None:
        if self.fail == operation:
            self.fail = None
            self.fired += 1
            raise OSError(self.code, os.strerror(self.code))

    def create(self, path: Path) -> NewFile:
        self.trip("create")
        return _FaultyFile(self, super().create(path))

    def rename(self, source: Path, target: Path) -> None:
        self.renames += 1
        if self.done_first:
            super().rename(source, target)
        self.trip("rename")
        if not self.done_first:
            super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        self.trip("sync_dir")
        self.synced.append(path)
        super().sync_dir(path)


class _FaultyFile:
    def __init__(self, fs: Faulty, file: NewFile) -> None:
        self._fs = fs
        self._file = file

    def write(self, data: Buffer) -> None:
        self._fs.trip("write")
        self._file.write(data)

    def sync(self) -> None:
        self._fs.trip("sync")
        self._file.sync()

    def close(self) -> None:
        self._file.close()
        self._fs.trip("close")


@pytest.fixture
def fs() -> Faulty:
    return Faulty()


@pytest.fixture
def staging(tmp_path: Path, fs: Faulty) -> Staging:
    (tmp_path / "s").mkdir()
    made = Staging(fs, tmp_path / "s", "run")
    made.terms.begin(TERM)
    return made


def staged(staging: Staging, key: str, attempt: str = "a", *, names: tuple[str, ...] = ("",)) -> Proposal:
    files = [
        staging.stage(TERM, f"{key.replace('/', '-')}.{attempt}.{number}", f"{key}{name}.pt", [f"{key}{name}".encode()])
        for number, name in enumerate(names)
    ]
    return Proposal(key, attempt, tuple(files))


def shown(staging: Staging) -> dict[str, bytes]:
    """Everything that a reader of the staging folder sees."""
    return {
        str(path.relative_to(staging.root)): path.read_bytes()
        for path in sorted(staging.root.rglob("*"))
        if path.is_file() and "_ray_sink" not in path.relative_to(staging.root).parts
    }


def test_terms_sort_in_the_order_of_time() -> None:
    terms = [term_name(epoch, life) for epoch in (1, 2, 10, 99_999) for life in (1, 2, 10, 100)]
    assert terms == sorted(terms)


def test_what_is_staged_is_complete_and_shows_nowhere(staging: Staging) -> None:
    temp = staging.stage(TERM, "a.0", "runs/x.pt", [b"12", bytearray(b"34"), memoryview(b"56")])
    assert temp == TempFile(f"{TERM}/a.0", FileRecord("runs/x.pt", 6, checksum_of([b"123456"])))
    assert shown(staging) == {}
    assert staging.temps() == [f"tmp/{TERM}/a.0"]


def test_sizes_are_bytes_whatever_the_chunks_are_made_of(staging: Staging) -> None:
    temp = staging.stage(TERM, "a.0", "x.pt", [memoryview(array.array("d", [1.0, 2.0])), memoryview(array.array("d"))])
    assert temp.file.bytes == 16


def test_an_empty_file_is_a_file(staging: Staging) -> None:
    temp = staging.stage(TERM, "a.0", "x.pt", [])
    assert staging.publish([Proposal("x", "a", (temp,))]) == []
    assert shown(staging) == {"x.pt": b""}


def test_publishing_gives_names_and_syncs_every_folder_that_got_one(staging: Staging, fs: Faulty) -> None:
    proposals = [staged(staging, "runs/1/x", names=("_u", "_v")), staged(staging, "y")]
    fs.synced.clear()
    assert staging.publish(proposals) == []
    assert shown(staging) == {"runs/1/x_u.pt": b"runs/1/x_u", "runs/1/x_v.pt": b"runs/1/x_v", "y.pt": b"y"}
    assert {staging.root, staging.root / "runs", staging.root / "runs/1"} <= set(fs.synced)
    assert staging.temps() == []


def test_publishing_may_be_repeated_by_anyone(staging: Staging) -> None:
    proposal = staged(staging, "x", names=("_u", "_v"))
    other = Staging(PosixFilesystem(), staging.root, "run")
    for each in (staging, other, staging):
        assert each.publish([proposal]) == []
    assert shown(staging) == {"x_u.pt": b"x_u", "x_v.pt": b"x_v"}


def test_a_half_published_output_is_finished(staging: Staging) -> None:
    proposal = staged(staging, "x", names=("_u", "_v"))
    staging.fs.rename(staging.root / "_ray_sink/run/tmp" / proposal.files[0].temp, staging.root / "x_u.pt")
    assert staging.publish([proposal]) == []
    assert shown(staging) == {"x_u.pt": b"x_u", "x_v.pt": b"x_v"}


def test_an_output_that_was_freed_meanwhile_is_reported_and_the_others_are_published(staging: Staging) -> None:
    gone, here = staged(staging, "gone"), staged(staging, "here")
    staging.publish([gone])
    staging.free([temp.file for temp in gone.files])
    assert set(staging.publish([gone, here])) == {"gone"}
    assert shown(staging) == {"here.pt": b"here"}


class Meanwhile(PosixFilesystem):
    """Something happens behind the first rename away from a final name."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile
        self.renamed: list[tuple[str, str]] = []

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.renamed.append((source.name, target.name))
        if source.suffix == ".pt" and len(self.renamed) == 1:
            self.meanwhile()


@pytest.mark.parametrize("anew", [False, True], ids=["alone", "while another does so, too"])
def test_a_name_that_somebody_else_has_given_is_given_anew(staging: Staging, anew: bool) -> None:
    """His sync of the folder may have failed; ours proves something only about a name of ours."""
    proposal = staged(staging, "x")
    temp = Path(proposal.files[0].temp).name
    staging.publish([proposal])
    fs = Meanwhile(lambda: staging.publish([proposal]) if anew else None)
    other = Staging(fs, staging.root, "run")
    assert other.publish([proposal]) == []
    away, back = ("x.pt", temp), (temp, "x.pt")
    # the second time, too, the name must be ours
    assert fs.renamed == ([away, away, back] if anew else [away, back])
    assert shown(staging) == {"x.pt": b"x"}
    assert staging.temps() == []


def test_a_rename_that_worked_and_was_reported_as_failed_is_a_success(staging: Staging, fs: Faulty) -> None:
    proposal = staged(staging, "x")
    fs.fail, fs.done_first = "rename", True
    assert staging.publish([proposal]) == []
    assert fs.fired == 1
    assert shown(staging) == {"x.pt": b"x"}


def test_a_rename_that_failed_once_is_done_again(staging: Staging, fs: Faulty) -> None:
    proposal = staged(staging, "x")
    fs.fail = "rename"
    assert staging.publish([proposal]) == []
    assert fs.fired == 1
    assert fs.renames == 2
    assert shown(staging) == {"x.pt": b"x"}


def test_a_file_of_another_size_in_the_place_is_told(staging: Staging) -> None:
    proposal = staged(staging, "x")
    staging.drop([proposal])
    (staging.root / "x.pt").write_text("something else altogether")
    with pytest.raises(StagingError, match="something else writes"):
        staging.publish([proposal])


@pytest.mark.parametrize("to", ["outside", "missing"])
def test_nothing_is_published_through_a_symlink(staging: Staging, tmp_path: Path, to: str) -> None:
    (tmp_path / "outside").mkdir()
    (staging.root / "link").symlink_to(tmp_path / to)
    proposal = staged(staging, "link/x")
    with pytest.raises(StagingError, match="symlink"):
        staging.publish([proposal])
    assert os.listdir(tmp_path / "outside") == []
    assert staging.temps() == [f"tmp/{proposal.files[0].temp}"]


def test_a_symlink_under_the_final_name_is_replaced_and_not_followed(staging: Staging, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (staging.root / "x.pt").symlink_to(tmp_path / "outside")
    assert staging.publish([staged(staging, "x")]) == []
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (staging.root / "x.pt").is_symlink()


@pytest.mark.parametrize("operation", ["write", "sync", "close"])
def test_a_stage_that_fails_leaves_no_temp(staging: Staging, fs: Faulty, operation: str) -> None:
    fs.fail, fs.code = operation, errno.ENOSPC
    with pytest.raises(StagingError, match=r"x\.pt.*No space left"):
        staging.stage(TERM, "a.0", "x.pt", [b"data"])
    assert fs.fired == 1
    assert staging.temps() == []


def test_a_temp_that_is_there_already_is_not_touched(staging: Staging) -> None:
    """It may be decided: whoever removed it would lose an output."""
    proposal = staged(staging, "x")
    with pytest.raises(StagingError):
        staging.stage(TERM, "x.a.0", "x.pt", [b"other bytes"])
    assert staging.publish([proposal]) == []
    assert shown(staging) == {"x.pt": b"x"}


def test_errors_of_syncing_are_not_swallowed(staging: Staging, fs: Faulty) -> None:
    proposal = staged(staging, "x")
    fs.fail = "sync_dir"
    with pytest.raises(StagingError):
        staging.sync_temps(TERM)
    fs.fail = "sync_dir"
    with pytest.raises(StagingError):
        staging.publish([proposal])
    assert fs.fired == 2


def test_dropping_and_freeing_what_is_gone_is_no_error(staging: Staging) -> None:
    proposal = staged(staging, "x")
    for _ in range(2):
        staging.drop([proposal])
        staging.free([temp.file for temp in proposal.files])
    assert staging.temps() == []


def test_an_older_life_can_neither_stage_nor_sync_nor_publish(staging: Staging) -> None:
    proposal = staged(staging, "x")
    newer = Staging(PosixFilesystem(), staging.root, "run")
    newer.terms.begin(term_name(1, 2))
    with pytest.raises(StagingError, match="newer owner"):
        staging.stage(TERM, "b.0", "y.pt", [b"y"])
    with pytest.raises(StagingError):
        staging.sync_temps(TERM)
    assert staging.publish([proposal]) == ["x"]
    assert shown(staging) == {}


def test_a_newer_life_publishes_what_was_decided_and_sweeps_the_rest(staging: Staging) -> None:
    decided, undecided = staged(staging, "x"), staged(staging, "y")
    newer = Staging(PosixFilesystem(), staging.root, "run")
    term = term_name(1, 2)
    newer.terms.begin(term)
    assert newer.roll_forward(term, [decided]) == []
    newer.sweep(term)
    assert shown(staging) == {"x.pt": b"x"}
    assert newer.temps() == []
    newer.stage(term, "z.0", "z.pt", [b"z"])
    assert undecided.files[0].temp.startswith(TERM)


def test_the_folder_of_an_output_may_be_cleared_away_between_two_batches(staging: Staging) -> None:
    first = staged(staging, "runs/1")
    staging.publish([first])
    staging.free([temp.file for temp in first.files])
    (staging.root / "runs").rmdir()
    assert staging.publish([staged(staging, "runs/2")]) == []
    assert shown(staging) == {"runs/2.pt": b"runs/2"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_fails_one_output_and_the_next_one_fits(small_disk: Path) -> None:
    staging = Staging(PosixFilesystem(), small_disk, "run")
    staging.terms.begin(TERM)
    with pytest.raises(StagingError, match=r"big\.pt.*No space left"):
        staging.stage(TERM, "a.0", "big.pt", [bytes(2**20)] * 4)
    assert staging.temps() == []
    small = staging.stage(TERM, "a.1", "small.pt", [bytes(2**18)])
    assert staging.publish([Proposal("small", "a", (small,))]) == []
    assert (small_disk / "small.pt").stat().st_size == 2**18


def test_a_sweep_removes_what_probes_left_that_were_killed_and_nothing_else(tmp_path: Path) -> None:
    ours = tmp_path / "_ray_sink"
    ours.mkdir()
    left = ["probe-0123456789abcdef", ".probe-0123456789abcdef-renamed", ".probe-0123456789abcdef.0123456789ab"]
    kept = ["probes", "probe-run", ".probe"]
    for name in [*left, *kept]:
        (ours / name).write_bytes(b"contents")
    Staging(PosixFilesystem(), tmp_path, "run-1").sweep(TERM)
    assert sorted(path.name for path in ours.iterdir()) == sorted(kept)
