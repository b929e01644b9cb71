"""A cluster in small: a disk, a store, a clock, and everybody who was ever started, the living and the forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ray_sink.errors import RunFencedError, RunOwnedError, SinkError, StagingError, StoreUnavailableError
from ray_sink.manifest import from_parquet, read_seal
from ray_sink.records import Receipt, RunInfo
from ray_sink.staging import Staging
from tests.model.actors import Driver, LedgerGone, Life, Uploading, Work, Writing
from tests.model.disk import Choose, Disk
from tests.model.record import Attempt, Record
from tests.model.script import Clock, Process, Script, Stopped, Violation
from tests.model.store import Bucket, SimulatedStore


def conservative(n: int) -> int:
    """A power cut that takes all it may."""
    return 0


def liberal(n: int) -> int:
    """A power cut that takes nothing."""
    return 1 % n


def chooser(seed: int) -> Choose:
    """0 and 1: the two extremes; any other: a mixture."""
    if seed < 2:
        return (conservative, liberal)[seed]
    return random.Random(seed).randrange


class World:
    """Everything there is.

    Args:
        with_store: whether the destination is an object store, or the staging folder.
    """

    def __init__(self, *, with_store: bool) -> None:
        self.script = Script()
        self.clock = Clock()
        self.disk = Disk(self.script)
        self.bucket = Bucket(self.script)
        self.record = Record(self.script)
        self.disk.on_final = self.record.seen
        self.bucket.on_object = self.record.stored
        self.info = RunInfo("run", SimulatedStore.url if with_store else None, "/disk", "bytes", "split")
        self.drivers: list[Driver] = []
        self.lives: list[Life] = []
        self.writings: list[Writing] = []
        self.uploadings: list[Uploading] = []
        self._processes: list[Process] = []
        self._attempts = 0

    # -- who there is ------------------------------------------------------------------------------------------------

    def process(self, role: str) -> Process:
        made = Process(f"{role}{len(self._processes)}")
        self._processes.append(made)
        return made

    def staging(self, process: Process) -> Staging:
        return Staging(self.disk.view(process), self.disk.root, "run")

    def guarded(self, what: Callable[[], object]) -> None:
        """Let somebody act; that he is stopped, fenced or refused is no violation, whatever else is."""
        try:
            what()
        except (Stopped, LedgerGone, RunFencedError, RunOwnedError, StoreUnavailableError, OSError) as error:
            self.script.note(f"gave up: {type(error).__name__} {error}")
        except StagingError as error:
            if not self.script.fired:
                raise
            self.script.note(f"gave up: {error}")

    def take_over(self) -> None:
        """Somebody starts the run's script (again). Whoever owned it shows no life meanwhile."""

        def start() -> None:
            driver = Driver(self)
            self.drivers.append(driver)
            if driver.life is not None:
                self.lives.append(driver.life)

        self.script.note("a driver starts")
        self.guarded(start)

    def restart_ledger(self, driver: Driver, *, kill: bool) -> None:
        self.script.note("the ledger starts anew")
        if kill and driver.life is not None:
            driver.life.process.kill()

        def restart() -> None:
            driver.restart_ledger()
            assert driver.life is not None
            self.lives.append(driver.life)

        self.guarded(restart)

    def write(self, life: Life, outputs: Sequence[tuple[str, Sequence[str], int]]) -> Writing:
        """A batch of (key, names of split files or none, content number) for a writer of `life`."""
        attempts = []
        for key, names, number in outputs:
            self._attempts += 1
            paths = [f"{key}_{name}.bin" for name in names] or [f"{key}.bin"]
            contents = {path: f"{path}={number};".encode() * 3 for path in paths}
            attempts.append(Attempt(key, f"t{self._attempts}", contents))
            self.record.attempted(attempts[-1])
        writing = Writing(self, life, attempts)
        self.writings.append(writing)
        return writing

    def upload(self, life: Life, *, instead_of_the_last: bool) -> Uploading:
        uploading = Uploading(self, life, instead_of_the_last=instead_of_the_last)
        self.uploadings.append(uploading)
        return uploading

    def power_cut(self, choose: Choose) -> None:
        self.script.note("power cut")
        for process in self._processes:
            process.kill()
        self.disk.power_cut(choose)
        for path, data in self.disk.finals().items():
            self.record.seen(path, data)
        self.check_sealed()

    def acknowledge(self, receipt: Receipt, by: Writing | Uploading) -> None:
        self.record.acknowledge(receipt, by.process.name)

    # -- checks ------------------------------------------------------------------------------------------------------

    def contents(self, *, durable: bool) -> dict[str, bytes]:
        """What a reader finds at the destination, besides our own folder; or would, were the power cut now."""
        if self.info.dest is None:
            return self.disk.finals(durable=durable)
        return {path: o.data for path, o in self.bucket.objects.items() if not path.startswith("_ray_sink/")}

    def check_sealed(self) -> bool:
        """Hold what is sealed, if it is, against the promises, as somebody who does not know how it came about."""
        process = Process("reader", observer=True)
        reader = SimulatedStore(self.bucket, process, self.disk.view(process))
        seal = read_seal(reader, "run")
        if seal is None:
            return False
        rows = [row for file in seal.manifest for row in from_parquet(reader.get_bytes(file.path))]
        if seal.outputs != len(rows) or seal.files != sum(len(row.files) for row in rows):
            raise Violation("I5: _SUCCESS counts other outputs than its manifest")
        for durable in (False, True):  # a sealed run needs nobody to come back and mend it
            # what came too late for the seal has no receipt, and was told so
            self.record.check(rows, self.contents(durable=durable), dict.fromkeys(self.unreceipted(), "late"))
        return True

    def unreceipted(self) -> list[str]:
        return [key for key in self.record.accepted() if key not in self.record.receipts]

    def finish(self) -> None:
        """No more faults: run the script to its end, let all zombies finish, cut the power, and look after each."""
        self.script.plan.clear()
        self.disk.faults.clear()
        self.bucket.fault = None
        for _ in range(2):  # the second time it is sealed already
            self.take_over()
            driver = self.drivers[-1]
            life = driver.life
            assert life is not None
            for key in self.unreceipted():
                shape = next(a for a in self.record.attempts.values() if a.key == key)
                names = [path.removeprefix(f"{key}_").removesuffix(".bin") for path in shape.contents]
                self.write(life, [(key, names if f"{key}.bin" not in shape.contents else (), 9)]).run()
            while life.ledger.has_unfinished_uploads():
                self.upload(life, instead_of_the_last=True).run()
            if failures := life.ledger.status().failures:
                raise Violation(f"I1: outputs failed without a reason: {failures}")
            if not driver.seal() or not self.check_sealed():
                raise Violation(f"the run cannot be sealed: {life.ledger.status()}")
            self.check_clean()
        if missing := set(self.unreceipted()) - set(self.record.refused):
            raise Violation(f"I1: accepted, and neither committed nor refused: {missing}")
        self.let_zombies_finish()
        if not self.check_sealed():
            raise Violation("I5: _SUCCESS is gone")
        self.power_cut(conservative)

    def check_clean(self) -> None:
        temps = self.staging(Process("reader", observer=True)).temps()
        if temps:
            raise Violation(f"I4: temps are left: {temps}")

    def let_zombies_finish(self) -> None:
        self.script.note("zombies go on")
        self.bucket.land()
        works: list[Work] = [*self.writings, *self.uploadings]
        for work in works:
            work.run()
        for driver in self.drivers[:-1]:
            try:
                self.guarded(driver.seal)
            except SinkError as error:
                self.script.note(f"gave up: {error}")
