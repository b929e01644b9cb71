"""The real pipeline without Ray: writer, ledger, uploader and a folder as destination, in one process."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import torch

from benchmarks.journals import BATCH, batches, info_of, key_of, staging_of
from benchmarks.works import embeddings
from ray_sink.checksum import checksum_of
from ray_sink.config import DictMode, SaveFormat, UploadOptions
from ray_sink.errors import SinkError
from ray_sink.formats import resolve
from ray_sink.formats.loading import load
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import seal
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing
from ray_sink.reading import open as open_run
from ray_sink.records import Receipt, TempFile, UploadOutcome, UploadTask
from ray_sink.stores import open_store
from ray_sink.uploader import Uploader
from ray_sink.writer import Output, Writer

_ALL = 2**40


class Pipeline:
    """Writer, ledger and uploader, handing over to each other as their actors do."""

    def __init__(self, root: Path) -> None:
        for name in ("staging", "dest", "temp"):
            (root / name).mkdir()
        self.root = root
        self.staging = staging_of(root)
        self.ledger = Ledger.open(self.staging, info_of(root), 1, LedgerOptions())
        publishing = DecidedPublishing(
            self.staging,
            self.ledger.term,
            decide=self.ledger.decide,
            published=self.ledger.published,
            locate=self._locate,
            temp_dir=root / "temp",
            patience=Patience(60.0),
        )
        self.writer: Writer[TempFile, Receipt] = Writer(
            resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, publishing, threads=2
        )
        self.store = open_store(info_of(root).dest or "", UploadOptions())
        self.uploader = Uploader(self.store, root / "staging", "run", UploadOptions())

    def _locate(self, keys: Sequence[str]) -> list[Receipt | SinkError]:
        return [self.ledger.receipt(key) or SinkError(f"{key} is gone") for key in keys]

    def put(self, outputs: Sequence[Output]) -> None:
        receipts = self.writer.write_batch(outputs)
        assert all(isinstance(receipt, Receipt) for receipt in receipts), receipts
        outcomes: SimpleQueue[UploadOutcome] = SimpleQueue()
        tasks: list[UploadTask] = self.ledger.take_uploads(0, max_outputs=BATCH, max_bytes=_ALL)
        for task in tasks:
            self.uploader.submit(task, outcomes.put)
        self.uploader.free(self.ledger.uploaded([outcomes.get() for _ in tasks]))

    def seal(self) -> None:
        assert not self.ledger.has_unfinished_uploads()
        self.ledger.begin_sealing()
        seal(self.store, info_of(self.root), 1, self.ledger.receipts(), self.ledger.status())

    def close(self) -> None:
        self.writer.close()
        self.uploader.close()
        self.ledger.close()


def through(root: Path, outputs: int) -> list[float]:
    """CPU seconds for each tenth of the outputs, through the pipeline."""
    vectors = embeddings(1024)
    chance = random.Random(0)
    pipeline = Pipeline(root)
    spent = []
    for tenth in range(10):
        began_s = time.process_time()
        for numbers in batches(outputs, tenth):
            pipeline.put([Output(key_of(n), vectors[n % 1024] + n, f"{chance.getrandbits(128):032x}") for n in numbers])
        spent.append(time.process_time() - began_s)
    pipeline.seal()
    pipeline.close()
    manifest = open_run(info_of(root).dest or "")
    assert len(manifest) == outputs
    for receipt in islice(manifest.receipts(), 0, None, max(1, outputs // 1000)):
        path = root / "dest" / receipt.files[0].path
        assert checksum_of([path.read_bytes()]) == receipt.files[0].checksum
        number = int(receipt.key.rpartition("_")[2])
        assert torch.equal(_tensor(path), vectors[number % 1024] + number)
    return spent


def _tensor(path: Path) -> torch.Tensor:
    value = load(path)
    assert isinstance(value, torch.Tensor)
    return value
