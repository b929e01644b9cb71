"""B8: long runs. What an output costs after 10^4 and 10^5 others, and what 10^6 of them cost whoever comes back.

The pipeline is the real one without Ray: writer, ledger, uploader and a folder as destination, in one process, on tmpfs.
Journals of up to 10^6 outputs are the real ledger's, asked about attempts that have no files. Each step behind them is
looked at in a process of its own: seconds, and the most memory it ever held.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Final

import torch

from benchmarks.measuring import Figure
from benchmarks.works import embeddings
from ray_sink.checksum import checksum_of
from ray_sink.config import DictMode, SaveFormat, UploadOptions
from ray_sink.filesystem import NewFile, PosixFilesystem
from ray_sink.formats import resolve
from ray_sink.formats.loading import load
from ray_sink.keys import hash_keys
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import seal
from ray_sink.patience import Patience
from ray_sink.publishing import DecidedPublishing
from ray_sink.reading import open as open_run
from ray_sink.records import (
    FileRecord,
    Proposal,
    Receipt,
    RunInfo,
    TempFile,
    UploadOutcome,
    UploadTask,
    Verification,
)
from ray_sink.staging import Staging
from ray_sink.stores import open_store
from ray_sink.uploader import Uploader
from ray_sink.writer import Output, Writer

LENGTHS: Final = (10**4, 10**5, 10**6)
PIPELINE: Final = 10**5
ROUNDS: Final = 3
RESUME_BAR_S, RESUME_BAR_GB = 10.0, 1.0
FLAT: Final = 1.25
_BATCH: Final = 64
_SHM = Path("/dev/shm")
_ALL: Final = 2**40


def key_of(number: int) -> str:
    return f"runs/{number // 1000:04d}/sample_{number:07d}"


def info_of(root: Path) -> RunInfo:
    return RunInfo("run", f"file://{root}/dest", f"{root}/staging", "numpy_npy", "single")


def staging_of(root: Path, filesystem: PosixFilesystem | None = None) -> Staging:
    return Staging(filesystem or PosixFilesystem(), root / "staging", "run")


def _batches(outputs: int, tenth: int) -> Iterator[range]:
    end = (tenth + 1) * outputs // 10
    for begin in range(tenth * outputs // 10, end, _BATCH):
        yield range(begin, min(begin + _BATCH, end))


class _Unsynced:
    def __init__(self, file: NewFile) -> None:
        self.write, self.close = file.write, file.close

    def sync(self) -> None:
        """Do nothing."""


class Unsynced(PosixFilesystem):
    """Fast: what is written here need not survive anything."""

    def create(self, path: Path) -> NewFile:
        return _Unsynced(super().create(path))

    def sync_dir(self, path: Path) -> None:
        """Do nothing."""


def synthesize(root: Path, outputs: int) -> list[float]:
    """Journals of a run whose outputs are all uploaded, by a ledger that is told so.

    Returns:
        The ledger's CPU seconds for each tenth of the outputs.
    """
    (root / "staging").mkdir(parents=True)
    chance = random.Random(0)
    ledger = Ledger.open(staging_of(root, Unsynced()), info_of(root), 1, LedgerOptions())
    spent = []
    for tenth in range(10):
        began_s = time.process_time()
        for numbers in _batches(outputs, tenth):
            winners = [d.winner for d in ledger.decide([_attempt(ledger.term, n, chance) for n in numbers])]
            ledger.published([(winner.key, winner.attempt) for winner in winners if winner is not None])
            tasks = ledger.take_uploads(0, max_outputs=_BATCH, max_bytes=_ALL)
            freed = ledger.uploaded([UploadOutcome(t.key, t.attempt, Verification.VERIFIED) for t in tasks])
            assert len(freed) == len(numbers)
        spent.append(time.process_time() - began_s)
    ledger.close()
    return spent


def _attempt(term: str, number: int, chance: random.Random) -> Proposal:
    key, attempt = key_of(number), f"{chance.getrandbits(128):032x}"
    file = FileRecord(f"{key}.npy", 4224, f"crc64nvme:{chance.getrandbits(64):016x}")
    return Proposal(key, attempt, (TempFile(f"{term}/{attempt}.0", file),), f"d/{number}")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took: wall and CPU seconds, and the process's most memory during it, in bytes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def measured(work: Callable[[], object]) -> Step:
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    marks = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in marks if line.startswith("VmHWM:"))
    return Step(took_s, cpu_s, int(peak.split()[1]) * 1024)


def come_back(root: Path, outputs: int) -> dict[str, Step]:
    """In a process of its own: the next driver's ledger, up to the sealed manifest."""
    found: dict[str, Step] = {}
    ledgers: list[Ledger] = []
    epoch = 2 + len(list(staging_of(root).journal_dir.iterdir()))
    found["resume"] = measured(
        lambda: ledgers.append(Ledger.open(staging_of(root), info_of(root), epoch, LedgerOptions()))
    )
    (ledger,) = ledgers
    status = ledger.status()
    assert (status.decided, status.uploaded, status.staged) == (outputs, outputs, 0)
    hashes: list[int] = []
    found["keys"] = measured(lambda: hashes.append(len(hash_keys(ledger.keys()))))
    assert hashes == [outputs]
    count: list[int] = []
    found["receipts"] = measured(lambda: count.append(sum(1 for _ in ledger.receipts())))
    assert count == [outputs]
    store = open_store(info_of(root).dest or "", UploadOptions())
    shutil.rmtree(root / "dest", ignore_errors=True)
    (root / "dest").mkdir()
    found["seal"] = measured(lambda: seal(store, info_of(root), epoch, ledger.receipts(), status))
    ledger.close()
    return found


def read_back(root: Path, outputs: int) -> dict[str, Step]:
    """In a process of its own: the reader of a sealed run."""

    def read() -> None:
        manifest = open_run(info_of(root).dest or "")
        assert sum(1 for _ in manifest.keys()) == outputs
        for number in range(0, outputs, max(1, outputs // 100)):
            receipt = manifest.receipt(key_of(number))
            assert (receipt.key, receipt.files[0].path) == (key_of(number), f"{key_of(number)}.npy")

    return {"open": measured(read)}


def apart(work: str, root: Path, outputs: int) -> dict[str, Step]:
    command = [sys.executable, "-m", "benchmarks.length", work, str(root), str(outputs)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: Step(**step) for name, step in json.loads(said.splitlines()[-1]).items()}


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
            locate=lambda keys: [self.ledger.receipt(key) for key in keys],
            temp_dir=root / "temp",
            patience=Patience(60.0),
        )
        self.writer: Writer[TempFile, Receipt] = Writer(
            resolve(SaveFormat.NUMPY_NPY), DictMode.SINGLE, publishing, threads=2
        )
        self.store = open_store(info_of(root).dest or "", UploadOptions())
        self.uploader = Uploader(self.store, root / "staging", "run", UploadOptions())

    def put(self, outputs: Sequence[Output]) -> None:
        receipts = self.writer.write_batch(outputs)
        assert all(isinstance(receipt, Receipt) for receipt in receipts), receipts
        outcomes: SimpleQueue[UploadOutcome] = SimpleQueue()
        tasks: list[UploadTask] = self.ledger.take_uploads(0, max_outputs=_BATCH, max_bytes=_ALL)
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
        for numbers in _batches(outputs, tenth):
            pipeline.put(
                [Output(key_of(n), vectors[n % 1024] + n, f"{chance.getrandbits(128):032x}") for n in numbers]
            )
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


def answer() -> Iterator[Figure]:
    yield from _of_pipeline()
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        steps: dict[int, dict[str, list[Step]]] = {}
        for outputs in LENGTHS:
            place = root / str(outputs)
            spent = synthesize(place, outputs)
            if outputs == LENGTHS[-1]:
                yield _flat("ledger alone, 10^6", spent, outputs)
            steps[outputs] = {}
            for _ in range(ROUNDS):
                for name, step in {**apart("back", place, outputs), **apart("read", place, outputs)}.items():
                    steps[outputs].setdefault(name, []).append(step)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    yield from _of_steps(steps)


def _of_pipeline() -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-", dir=_SHM))
    try:
        yield _flat(f"pipeline, 4 KiB outputs, {PIPELINE:,}", through(root, PIPELINE), PIPELINE)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _flat(case: str, spent: Sequence[float], outputs: int) -> Figure:
    first, last = (10 * median(part) / outputs for part in (spent[1:4], spent[7:]))
    return Figure(
        "B8",
        f"{case}: CPU of an output near the end",
        last / first,
        "x near the beginning",
        most=FLAT,
        seconds={"beginning": first, "end": last},
    )


def _of_steps(steps: dict[int, dict[str, list[Step]]]) -> Iterator[Figure]:
    most, before = LENGTHS[-1], LENGTHS[-2]
    for name in steps[most]:
        wall_s = median(step.wall_s for step in steps[most][name])
        peak_gb = median(step.peak_bytes for step in steps[most][name]) / 1e9
        bars = (RESUME_BAR_S, RESUME_BAR_GB) if name == "resume" else (None, None)
        yield Figure("B8", f"{name} of 10^6", wall_s, "s", most=bars[0])
        yield Figure("B8", f"{name} of 10^6, peak memory of its process", peak_gb, "GB", most=bars[1])
        cpu_s = {outputs: median(step.cpu_s for step in steps[outputs][name]) for outputs in LENGTHS}
        yield Figure(
            "B8",
            f"{name}: CPU of an output of 10^6",
            cpu_s[most] / most / (cpu_s[before] / before),
            "x of 10^5",
            most=FLAT,
            seconds={f"{outputs:,}": seconds for outputs, seconds in cpu_s.items()},
        )


if __name__ == "__main__":
    _work = {"back": come_back, "read": read_back}[sys.argv[1]]
    _steps = _work(Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps({name: asdict(step) for name, step in _steps.items()}) + "\n")
