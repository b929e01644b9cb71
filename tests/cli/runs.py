"""Runs without Ray, made of the same classes as the actors, to be killed, finished and looked at.

``python -m tests.cli.runs MODE STAGING DEST RUN_ID`` is a driver for tests: it says what it has done on standard output
and ends only by being killed.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch

from ray_sink.book import DatasetState
from ray_sink.checksum import checksum_of
from ray_sink.config import DictMode, SaveFormat, UploadOptions
from ray_sink.errors import SinkError
from ray_sink.filesystem import PosixFilesystem
from ray_sink.formats import resolve
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import seal
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing
from ray_sink.records import (
    Decision,
    FileRecord,
    MultipartUpload,
    Proposal,
    Receipt,
    RunInfo,
    RunStatus,
    State,
    TempFile,
    Verification,
)
from ray_sink.staging import Staging
from ray_sink.stores import open_store
from ray_sink.writer import Output, Writer

ROOT = Path(__file__).parents[2]
FORMAT = resolve(SaveFormat.NUMPY_NPY)
BATCH = 4


def value_of(number: int) -> torch.Tensor:
    return torch.full((64, number % 7 + 1), float(number))


def bytes_of(key: str) -> bytes:
    """What the object of `key` must hold."""
    file = io.BytesIO()
    FORMAT.encode(value_of(int(key.rpartition("_")[2])), file)
    return file.getvalue()


class Driver:
    """Owns a run, decides in one process, and stages."""

    def __init__(self, staging: Path, dest: str | None, run_id: str) -> None:
        self.info = RunInfo(run_id, dest, str(staging), FORMAT.name, DictMode.SINGLE.value)
        self.lock = threading.Lock()
        self.claim = self._claim(staging)
        self.staging = Staging(PosixFilesystem(), staging, run_id)
        self.ledger = Ledger.open(self.staging, self.info, self.claim.epoch, LedgerOptions())
        self.writer: Writer[TempFile, Receipt] = Writer(
            FORMAT,
            DictMode.SINGLE,
            DecidedPublishing(
                self.staging,
                self.ledger.term,
                decide=self.decide,
                published=self.ledger.published,
                locate=self.locate,
                patience=Patience(10),
            ),
        )

    def _claim(self, staging: Path) -> Claim:
        places: list[Place] = [FolderPlace(PosixFilesystem(), staging)]
        if self.info.dest is not None:
            store = open_store(self.info.dest, UploadOptions())
            if store.probe().create_only:
                places.insert(0, StorePlace(store))
        owner = Owner(self.info.run_id, "test", os.getpid(), os.urandom(4).hex())
        return claim(places, owner, takeover_s=1, clock=time.monotonic, sleep=time.sleep)

    def decide(self, proposals: Sequence[Proposal]) -> Sequence[Decision]:
        return self.ledger.decide(proposals)

    def locate(self, keys: Sequence[str]) -> Sequence[Receipt | SinkError]:
        return [self.ledger.receipt(key) or SinkError(f"{key} is nowhere") for key in keys]

    def write(self, numbers: range) -> list[str]:
        """Stage outputs; the keys that are acknowledged."""
        batch = [Output(f"runs/sample_{n:04d}", value_of(n), f"attempt-{n}-{os.urandom(4).hex()}") for n in numbers]
        results = self.writer.write_batch(batch)
        failed = [result for result in results if isinstance(result, SinkError)]
        if failed:
            raise failed[0]
        return [output.key for output in batch]

    def finish(self) -> None:
        """A dataset comes to its end, and the driver to its own."""
        self.ledger.dataset("images", DatasetState.COMPLETE)
        self.ledger.closing()

    def leave(self) -> None:
        self.ledger.close()
        self.claim.release()


def staged_run(staging: Path, dest: str | None, count: int, *, run_id: str = "run-1", finished: bool = True) -> None:
    """A run of `count` outputs, all staged, whose driver left in good order before any upload."""
    driver = Driver(staging, dest, run_id)
    driver.ledger.dataset("images", DatasetState.OPEN)
    driver.write(range(count))
    if finished:
        driver.finish()
    driver.leave()


def sealed_run(dest: Path, count: int, *, run_id: str = "run-1") -> Path:
    """A sealed run of very many outputs in a folder, as if it had been uploaded; the folder."""
    (dest / "runs").mkdir(parents=True)
    receipts = []
    for key in (f"runs/sample_{number:04d}" for number in range(count)):
        data, path = bytes_of(key), f"{key}.npy"
        (dest / path).write_bytes(data)
        file = FileRecord(path, len(data), checksum_of([data]), f"{dest}/{path}")
        receipts.append(Receipt(key, f"attempt-{key}", State.UPLOADED, (file,), Verification.VERIFIED))
    info = RunInfo(run_id, str(dest), "/nowhere", FORMAT.name, DictMode.SINGLE.value)
    seal(open_store(str(dest), UploadOptions()), info, 1, receipts, RunStatus())
    return dest


class Hanging(Driver):
    """Dies, by the test's hand, between the decision and the publishing."""

    def decide(self, proposals: Sequence[Proposal]) -> Sequence[Decision]:
        decided = super().decide(proposals)
        say(decided=[decision.key for decision in decided])
        threading.Event().wait()
        return decided


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    mode, staging, dest, run_id = sys.argv[1:]
    kind = Hanging if mode == "hanging" else Driver
    driver = kind(Path(staging), dest or None, run_id)
    driver.ledger.dataset("images", DatasetState.OPEN)
    if mode == "multipart":
        path, upload_id = sys.stdin.readline().split()
        driver.ledger.multipart_started(MultipartUpload(path, upload_id))
    if mode == "live":
        threading.Thread(target=_beat, args=(driver.claim,), daemon=True).start()
    for first in range(0, 100_000, BATCH):
        say(acknowledged=driver.write(range(first, first + BATCH)))
        if first == 5 * BATCH and mode in ("live", "finished"):
            if mode == "finished":
                driver.finish()
            say(waiting=True)
            threading.Event().wait()


def _beat(claimed: Claim) -> None:
    while True:
        claimed.beat()
        time.sleep(0.1)


@contextmanager
def driver_process(
    mode: str, staging: Path, dest: str | None, *, run_id: str = "run-1", told: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """The driver as a process of its own; SIGKILLed on leaving."""
    command = [sys.executable, "-m", "tests.cli.runs", mode, str(staging), dest or "", run_id]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples" / "quickstart")])}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        assert process.stdin is not None
        process.stdin.write(told)
        process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def heard(stdout: IO[str] | None, name: str, times: int = 1) -> list[object]:
    """What the driver said under `name`, once it has said it so many times."""
    assert stdout is not None
    found: list[object] = []
    while len(found) < times:
        line = stdout.readline()
        if not line:
            raise AssertionError(f"the driver ended; it had said {name!r} {len(found)} times")
        facts = json.loads(line)
        if name in facts:
            found.append(facts[name])
    return found


if __name__ == "__main__":
    main()
