"""Outputs that go from a writer's own disk to the destination, and are decided there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from ray_sink.config import DictMode, NodeLocal, SaveFormat, UploadOptions
from ray_sink.errors import ConfigError, DestinationConflict, DuplicateKeyError, SinkError, StagingError
from ray_sink.formats import resolve
from ray_sink.journal_objects import JournalObjects, JournalStaging
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.node_local import LocalFile, LocalFolder, NodeLocalPublishing, Uploads
from ray_sink.patience import Patience
from ray_sink.records import Decision, Proposal, Receipt, RunInfo, State, UploadOutcome, UploadTask
from ray_sink.stores import open_store
from ray_sink.uploader import ATTEMPT, CHECKSUM, RUN, Uploader
from ray_sink.writer import Output, Writer
from tests.servers import S3Bucket
from tests.stores.conftest import sign_in


class Bench:
    """A ledger at the destination, and any number of nodes with a writer and an uploader each."""

    def __init__(self, bucket: S3Bucket, nodes: Path) -> None:
        self.nodes = nodes
        self.store = open_store(bucket.url, UploadOptions())
        self.info = RunInfo("run", bucket.url, str(nodes), "numpy_npy", "single")
        self.folders: list[LocalFolder] = []
        self.uploads: list[UploadTask] = []
        self.before_commit: Callable[[], None] = lambda: None
        self.ledger = self.opened(1)

    def opened(self, epoch: int) -> Ledger:
        staging = JournalStaging(JournalObjects(self.store, "run"), "run")
        return Ledger.open(staging, self.info, epoch, LedgerOptions())

    def writer(self, node: str = "node", term: str = "") -> Writer[LocalFile, Receipt]:
        root = self.nodes / node
        root.mkdir(exist_ok=True)
        uploader = Uploader(self.store, root, "run", UploadOptions())

        def upload(tasks: Sequence[UploadTask]) -> list[UploadOutcome]:
            self.uploads += tasks
            return [uploader.upload(task) for task in tasks]

        def commit(uploads: Uploads) -> list[Decision]:
            self.before_commit()
            return self.ledger.commit(uploads)

        def foresee(proposals: Sequence[Proposal]) -> list[Decision]:
            return self.ledger.foresee(proposals)

        self.folders.append(LocalFolder(root, "run"))
        publishing = NodeLocalPublishing(
            self.folders[-1],
            term or self.ledger.term,
            foresee=foresee,
            upload=upload,
            commit=commit,
            patience=Patience(10),
        )
        return Writer(resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, publishing, threads=2)

    def left(self) -> list[str]:
        """Files on the nodes."""
        return [str(path) for path in self.nodes.rglob("*") if path.is_file()]


@pytest.fixture
def bench(s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    sign_in(monkeypatch, s3_bucket.server)
    return Bench(s3_bucket, tmp_path)


def good(result: Receipt | SinkError) -> Receipt:
    assert isinstance(result, Receipt), result
    return result


def output(key: str, value: float, attempt: str, source: str | None = None) -> Output:
    return Output(key, torch.full((8,), value), attempt, source)


def test_outputs_are_uploaded_and_nothing_stays_on_the_node(bench: Bench) -> None:
    with bench.writer() as writer:
        receipts = [good(one) for one in writer.write_batch([output("a/b", 1, "t1"), output("c", 2, "t2")])]
    assert [(one.key, one.attempt, one.state) for one in receipts] == [
        ("a/b", "t1", State.UPLOADED),
        ("c", "t2", State.UPLOADED),
    ]
    for one in receipts:
        assert bench.store.read_checksum(one.files[0].path) == one.files[0].checksum
    assert bench.left() == []
    assert list(bench.opened(2).receipts()) == receipts


def test_what_nobody_journaled_is_taken_by_who_makes_it_again(bench: Bench) -> None:
    """The first one is killed when its object is there."""

    def dies() -> None:
        raise KeyboardInterrupt

    bench.before_commit = dies
    with pytest.raises(KeyboardInterrupt), bench.writer("one") as writer:
        writer.write_batch([output("a", 1, "t1")])
    before = bench.store.head("a.npy")
    bench.before_commit = lambda: None
    bench.ledger = bench.opened(2)
    with bench.writer("two") as writer:
        receipt = good(writer.write_batch([output("a", 2, "t2")])[0])
    assert receipt.attempt == "t1", "what the second one computed was written over it"
    assert bench.store.head("a.npy") == before
    assert bench.store.read_checksum("a.npy") == receipt.files[0].checksum
    assert [one.attempt for one in bench.opened(3).receipts()] == ["t1"]


def test_of_two_at_a_time_one_has_the_name_and_both_its_receipt(bench: Bench) -> None:
    found: list[Receipt] = []

    def faster() -> None:
        bench.before_commit = lambda: None
        found.append(good(bench.writer("two").write_batch([output("a", 2, "t2")])[0]))

    bench.before_commit = faster  # the second one comes when the first one's object is there
    found.append(good(bench.writer("one").write_batch([output("a", 1, "t1")])[0]))
    assert found[0] == found[1]
    assert found[0].attempt == "t1"
    assert bench.store.read_checksum("a.npy") == found[0].files[0].checksum


def test_another_attempts_object_that_is_not_what_it_says_is_not_taken(bench: Bench, s3_bucket: S3Bucket) -> None:
    said = {RUN: "run", ATTEMPT: "t0", CHECKSUM: "crc64nvme:0123456789abcdef"}
    s3_bucket.server.client().put_object(Bucket=s3_bucket.name, Key="a.npy", Body=b"torn", Metadata=said)
    receipt = good(bench.writer().write_batch([output("a", 1, "t1")])[0])
    assert receipt.attempt == "t1"
    assert bench.store.read_checksum("a.npy") == receipt.files[0].checksum


def test_two_rows_of_one_key_at_a_time_are_an_error_of_the_later_one(bench: Bench) -> None:
    """Both were foreseen to have it; who finds the other's object must not take that for a try of its own."""

    def faster() -> None:
        bench.before_commit = lambda: None
        found.append(bench.writer("two").write_batch([output("a", 2, "t2", "x/2")])[0])

    found: list[Receipt | SinkError] = []
    bench.before_commit = faster
    found.append(bench.writer("one").write_batch([output("a", 1, "t1", "x/1")])[0])
    assert sum(isinstance(one, DuplicateKeyError) for one in found) == 1
    assert [one.attempt for one in found if isinstance(one, Receipt)] == ["t1"]


def test_what_is_committed_or_refused_is_not_sent_again(bench: Bench) -> None:
    writer = bench.writer()
    first = good(writer.write_batch([output("a", 1, "t1", "x/1")])[0])
    again, twice, other = writer.write_batch(
        [output("a", 2, "t2", "x/1"), output("a", 1, "t3", "x/2"), output("b", 1, "t4")]
    )
    assert again == first
    assert isinstance(twice, DuplicateKeyError)
    assert good(other).key == "b"
    assert [task.attempt for task in bench.uploads] == ["t1", "t4"]
    assert bench.left() == []


def test_one_batch_may_hold_two_attempts_of_a_key(bench: Bench) -> None:
    one, two = bench.writer().write_batch([output("a", 1, "t1"), output("a", 2, "t2")])
    assert good(one) == good(two)
    assert [task.attempt for task in bench.uploads] == ["t1"]


def test_another_runs_object_is_a_conflict_of_that_output_alone(bench: Bench) -> None:
    bench.store.put_bytes("a.npy", b"theirs", replace=False)
    one, two = bench.writer().write_batch([output("a", 1, "t1"), output("b", 2, "t2")])
    assert isinstance(one, DestinationConflict)
    assert good(two).key == "b"
    assert bench.store.get_bytes("a.npy") == b"theirs"
    assert bench.ledger.status().decided == 1


def test_what_was_encoded_for_an_older_ledger_is_refused_before_it_is_sent(bench: Bench) -> None:
    (refused,) = bench.writer(term="000000.001").write_batch([output("a", 1, "t1")])
    assert "stage it again" in str(refused)
    assert bench.uploads == []
    assert bench.left() == []


_KILLED = """
import sys, time
from pathlib import Path
from ray_sink.node_local import LocalFolder
folder = LocalFolder(Path(sys.argv[1]), sys.argv[2])
(folder.path / "t1.0~0").write_bytes(b"x")
print(folder.path, flush=True)
time.sleep(1000)
"""


def test_what_a_dead_writer_left_is_removed_by_the_next_one_there_and_what_a_living_one_has_is_not(
    tmp_path: Path,
) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path), run], stdout=subprocess.PIPE, text=True)
        for run in ("run", "another")
    ]
    try:
        folders = [Path(process.stdout.readline().strip()) for process in processes if process.stdout is not None]
        mine = LocalFolder(tmp_path, "run")
        assert all((folder / "t1.0~0").exists() for folder in folders)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        other = LocalFolder(tmp_path, "run")
        assert not any(folder.exists() for folder in folders)
        assert mine.path.is_dir()
        mine.clear()
        assert other.path.is_dir()
        other.clear()
        assert [path.name for path in tmp_path.rglob("*")] == ["_ray_sink"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_node_without_the_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StagingError, match=r"there is no folder .*/nvme"):
        LocalFolder(tmp_path / "nvme", "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match="on each node that gets a writer"):
        LocalFolder(tmp_path / "file", "run")


@pytest.mark.parametrize("path", ["nvme", "", 3, None])
def test_a_path_that_is_no_absolute_one_is_refused(path: object) -> None:
    with pytest.raises(ConfigError, match="NodeLocal takes"):
        NodeLocal(path)  # type: ignore[arg-type]
