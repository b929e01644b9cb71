"""Journals of long runs, by the real ledger, and what they cost whoever comes back: imported by processes of their own.

python -m benchmarks.journals back|read ROOT OUTPUTS
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ray_sink.config import UploadOptions
from ray_sink.filesystem import NewFile, PosixFilesystem
from ray_sink.keys import hash_keys
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import seal
from ray_sink.reading import open as open_run
from ray_sink.records import FileRecord, Proposal, RunInfo, TempFile, UploadOutcome, Verification
from ray_sink.staging import Staging
from ray_sink.stores import open_store

BATCH: Final = 64
_ALL: Final = 2**40


def key_of(number: int) -> str:
    return f"runs/{number // 1000:04d}/sample_{number:07d}"


def info_of(root: Path) -> RunInfo:
    return RunInfo("run", f"file://{root}/dest", f"{root}/staging", "numpy_npy", "single")


def staging_of(root: Path, filesystem: PosixFilesystem | None = None) -> Staging:
    return Staging(filesystem or PosixFilesystem(), root / "staging", "run")


def batches(outputs: int, tenth: int) -> Iterator[range]:
    end = (tenth + 1) * outputs // 10
    for begin in range(tenth * outputs // 10, end, BATCH):
        yield range(begin, min(begin + BATCH, end))


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
        for numbers in batches(outputs, tenth):
            winners = [d.winner for d in ledger.decide([attempt_of(ledger.term, n, chance) for n in numbers])]
            ledger.published([(winner.key, winner.attempt) for winner in winners if winner is not None])
            tasks = ledger.take_uploads(0, max_outputs=BATCH, max_bytes=_ALL)
            freed = ledger.uploaded([UploadOutcome(t.key, t.attempt, Verification.VERIFIED) for t in tasks])
            assert len(freed) == len(numbers)
        spent.append(time.process_time() - began_s)
    ledger.close()
    return spent


def attempt_of(term: str, number: int, chance: random.Random, n_bytes: int = 4224) -> Proposal:
    key, attempt = key_of(number), f"{chance.getrandbits(128):032x}"
    file = FileRecord(f"{key}.npy", n_bytes, f"crc64nvme:{chance.getrandbits(64):016x}")
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
        assert sum(1 for _ in manifest) == outputs
        for number in range(0, outputs, max(1, outputs // 100)):
            receipt = manifest.receipt(key_of(number))
            assert (receipt.key, receipt.files[0].path) == (key_of(number), f"{key_of(number)}.npy")

    return {"open": measured(read)}


def apart(work: str, root: Path, outputs: int) -> dict[str, Step]:
    command = [sys.executable, "-m", "benchmarks.journals", work, str(root), str(outputs)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: Step(**step) for name, step in json.loads(said.splitlines()[-1]).items()}


if __name__ == "__main__":
    _work = {"back": come_back, "read": read_back}[sys.argv[1]]
    _steps = _work(Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps({name: asdict(step) for name, step in _steps.items()}) + "\n")
