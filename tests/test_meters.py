from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from ray_sink.config import DictMode, UploadOptions
from ray_sink.filesystem import NewFile, PosixFilesystem
from ray_sink.formats.npy import NpyFormat
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.measures import ProducerMeasures
from ray_sink.meters import MeasuredPublishing, ProducerMeter, UploadMeter, WriterMeter
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing
from ray_sink.records import Decision, FileRecord, Proposal, Receipt, RunInfo, UploadTask
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.staging import Staging
from ray_sink.stores.folder import FolderStore
from ray_sink.uploader import Uploader
from ray_sink.writer import Output, Writer
from tests.model.script import Clock

ENCODE_S, STAGE_S, DECIDE_S, PUBLISH_S = 0.1, 2.0, 30.0, 400.0


class SlowFilesystem(PosixFilesystem):
    """Every new file takes its time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def create(self, path: Path) -> NewFile:
        self.clock.now_s += STAGE_S
        return super().create(path)


class SlowFormat(NpyFormat):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def encode(self, value: Any, file: BinaryIO) -> Sequence[str]:
        self.clock.now_s += ENCODE_S
        return super().encode(value, file)


@pytest.mark.parametrize("beside", [True, False], ids=["straight into staging", "through a local temp"])
def test_each_stage_of_a_batch_has_its_own_time(tmp_path: Path, beside: bool) -> None:
    clock, root = Clock(), tmp_path / "staging"
    root.mkdir()
    meter = WriterMeter("w", clock.read)
    staging = Staging(PosixFilesystem(), root, "run")
    ledger = Ledger.open(staging, RunInfo("run", None, str(root), "npy", "single"), 1, LedgerOptions())

    def decide(proposals: Sequence[Proposal]) -> Sequence[Decision]:
        clock.now_s += DECIDE_S
        return ledger.decide(proposals)

    def published(attempts: Sequence[tuple[str, str]]) -> Sequence[FileRecord]:
        clock.now_s += PUBLISH_S
        return ledger.published(attempts)

    publishing = DecidedPublishing(
        Staging(SlowFilesystem(clock), root, "run"),
        ledger.term,
        decide=meter.deciding(decide),
        published=published,
        locate=lambda keys: [],
        patience=Patience(10),
        temp_dir=str(tmp_path) if beside else "/dev/shm",
    )
    writer = Writer(SlowFormat(clock), DictMode.SINGLE, MeasuredPublishing(publishing, meter))
    for batch in range(2):
        outputs = [Output(f"k{batch}-{n}", torch.zeros(3), f"a-{batch}-{n}") for n in range(3)]
        assert all(isinstance(done, Receipt) for done in writer.write_batch(outputs))
    said = meter.wrote(6, 72)
    assert (said.name, said.batches, said.outputs, said.bytes) == ("w", 1, 6, 72)
    for stage, count, each_s in (
        (said.encode, 6, ENCODE_S),
        (said.stage, 6, STAGE_S),
        (said.decide, 2, DECIDE_S),
        (said.publish, 2, PUBLISH_S),
    ):
        assert stage.count == count
        assert stage.longest_s == pytest.approx(each_s)
        assert stage.total_s == pytest.approx(count * each_s)


def test_an_upload_meter_counts_files_retries_and_what_was_given_up(tmp_path: Path) -> None:
    clock, root = Clock(), tmp_path / "staging"
    root.mkdir()

    class Late(FolderStore):
        """Takes two seconds for a put."""

        def put_file(self, *args: Any, **kwargs: Any) -> Any:
            clock.now_s += 2.0
            return super().put_file(*args, **kwargs)

    (root / "there").write_bytes(b"there")
    meter = UploadMeter()
    retry = Retry(RetryPolicy(attempts=3), clock=clock.read, sleep=lambda _: None)
    store = Late(str(tmp_path / "dest"), tmp_path / "dest")
    with Uploader(store, root, "run", UploadOptions(), meter=meter, retry=retry, clock=clock.read) as uploader:
        assert uploader.upload_as_found("there").error is None
        gone = UploadTask("gone", "a", (FileRecord("gone", 4, "crc64nvme:0000000000000000"),))
        assert uploader.upload(gone).error is not None
    said = meter.measures("u", concurrency=16, peak_bytes=7)
    assert (said.files, said.bytes, said.retries, said.failures) == (1, 5, 2, 1)
    assert (said.upload.count, said.upload.total_s) == (1, 2.0)
    assert (said.name, said.concurrency, said.peak_bytes) == ("u", 16, 7)


def test_a_producers_waits_are_told_apart_and_room_on_a_device_is_no_copying() -> None:
    clock, device_s = Clock(), 0.0
    meter = ProducerMeter("p", lambda: device_s, clock.read)
    with meter.copying():
        clock.now_s += 5.0
        device_s = 3.0
    with meter.wanting_credit():
        clock.now_s += 7.0
    meter.waited_for_receipts(11.0)
    meter.accepted(2)
    meter.sent(80)
    assert meter.measures() == ProducerMeasures("p", 2, 80, 2.0, 3.0, 7.0, 11.0)
    with pytest.raises(ZeroDivisionError), meter.copying():
        raise ZeroDivisionError
    assert meter.measures().accepted == 2
