"""A cluster in small: a disk, a store, a clock, and everybody who was ever started, the living and the forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from ray_sink.errors import RunFencedError, RunOwnedError, StagingError, StoreUnavailableError
from ray_sink.ledger import Ledger
from ray_sink.manifest import from_parquet, read_seal
from ray_sink.records import Receipt, RunInfo, State
from ray_sink.staging import Staging
from tests.model.actors import UPLOADERS, Driver, LedgerGone, Life, Uploading, Writing
from tests.model.disk import Choose, Disk
from tests.model.record import Attempt, Record
from tests.model.script import Clock, Process, Script, Until, Violation, Work
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


CallFault = Literal["call made twice", "call lost its answer"]
CALL_FAULTS: tuple[CallFault, ...] = get_args(CallFault)


class World:
    """Everything there is. Whoever starts something says how far it goes at first; `Work.run` goes on.

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
        self.works: list[Work] = []
        self.call_fault: CallFault | None = None
        self._processes: list[Process] = []
        self._attempts = 0

    # -- who there is ------------------------------------------------------------------------------------------------

    def process(self, role: str) -> Process:
        made = Process(f"{role}{len(self._processes)}")
        self._processes.append(made)
        return made

    def staging(self, process: Process) -> Staging:
        return Staging(self.disk.view(process), self.disk.root, "run")

    def alive(self) -> list[Life]:
        """Ledgers that are up, whoever owns the run by now."""
        return [life for life in self.lives if life.process.alive]

    # -- what they do ------------------------------------------------------------------------------------------------

    def begin(self, process: Process, what: str, body: Callable[[], None], until: Until) -> Work:
        def guarded() -> None:
            """That somebody is stopped, fenced or refused is no violation, whatever else is."""
            try:
                body()
            except (LedgerGone, RunFencedError, RunOwnedError, StoreUnavailableError, StagingError, OSError) as error:
                self.script.note(f"{process.name} gave up: {type(error).__name__} {error}")

        self.script.note(f"{process.name} begins to {what}")
        work = Work(self.script, process, what, guarded)
        self.works.append(work)
        work.run(until)
        return work

    def take_over(self, until: Until = None) -> Work:
        """Somebody starts the run's script (again)."""
        driver = Driver(self)
        self.drivers.append(driver)
        return self.begin(driver.process, "take over", driver.start, until)

    def restart_ledger(self, driver: Driver, until: Until = None, *, kill: bool) -> Work:
        if kill and driver.life is not None:
            driver.life.process.kill()
        return self.begin(driver.process, "start its ledger anew", driver.restart_ledger, until)

    def beat(self, driver: Driver, until: Until = None) -> Work:
        return self.begin(driver.process, "beat", driver.beat, until)

    def close(self, driver: Driver, until: Until = None) -> Work:
        return self.begin(driver.process, "close", driver.close, until)

    def publish_rest(self, life: Life, until: Until = None) -> Work:
        caller = self.process("caller")
        return self.begin(caller, "have the rest published", lambda: life.call(caller, Ledger.publish_rest), until)

    def write(self, life: Life, outputs: Sequence[tuple[str, Sequence[str], int]], until: Until = None) -> Work:
        """A batch of (key, names of split files or none, content number) for a writer of `life`."""
        attempts = []
        for key, names, number in outputs:
            self._attempts += 1
            paths = [f"{key}_{name}.bin" for name in names] or [f"{key}.bin"]
            contents = {path: f"{path}={number};".encode() * 3 for path in paths}
            attempts.append(Attempt(key, f"t{self._attempts}", contents))
            self.record.attempted(attempts[-1])
        writing = Writing(self, life, attempts)
        return self.begin(writing.process, "write", writing.write, until)

    def upload(self, life: Life, index: int, until: Until = None) -> Work:
        uploading = Uploading(self, life, index)
        return self.begin(uploading.process, "upload", uploading.upload, until)

    def power_cut(self, choose: Choose) -> None:
        self.script.fired("power cut")
        for process in self._processes:
            process.kill()
        self.disk.power_cut(choose)
        for path, data in self.disk.finals().items():
            self.record.seen(path, data)
        self.check_sealed()

    def acknowledge(self, receipt: Receipt, by: Process) -> None:
        self.record.acknowledge(receipt, by.name)
        for file in receipt.files:  # what a power cut would leave now, or what was uploaded and freed since
            data = self.record.attempts[receipt.attempt].contents[file.path]
            staged = receipt.state is State.STAGED and self.disk.finals(durable=True).get(file.path) == data
            stored = self.bucket.objects.get(file.path)
            if not staged and (stored is None or stored.data != data):
                raise Violation(f"P2: {receipt.key} is acknowledged ({receipt.state}), and {file.path} is not safe")

    # -- checks ------------------------------------------------------------------------------------------------------

    def contents(self, *, durable: bool) -> dict[str, bytes]:
        """What a reader finds at the destination, besides our own folder; or would, were the power cut now."""
        if self.info.dest is None:
            return self.disk.finals(durable=durable)
        ours = self.bucket.objects.keys() - self.bucket.foreign
        return {path: self.bucket.objects[path].data for path in sorted(ours) if not path.startswith("_ray_sink/")}

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
        self.bucket.fault = self.call_fault = None
        self.bucket.away = 0
        if self.bucket.foreign:
            in_the_way = {a.key for a in self.record.attempts.values() if self.bucket.foreign & a.contents.keys()}
            if strange := self.run_again().keys() - in_the_way:
                raise Violation(f"I1: outputs failed without a reason: {strange}")
            self.check_sealed()
            self.bucket.remove_foreign()
        for _ in range(2):  # the second time it is sealed already
            if failures := self.run_again():
                raise Violation(f"I1: outputs failed without a reason: {failures}")
            if not self.check_sealed():
                raise Violation("the run cannot be sealed")
            self.check_clean()
        if missing := set(self.unreceipted()) - set(self.record.refused):
            raise Violation(f"I1: accepted, and neither committed nor refused: {missing}")
        self.script.note("zombies go on")
        self.bucket.land()
        for work in self.works:
            work.run_to_end()
        if not self.check_sealed():
            raise Violation("I5: _SUCCESS is gone")
        self.power_cut(conservative)

    def run_again(self) -> dict[str, str]:
        """The script, undisturbed, from its start to its end; what failed, by key."""
        self.take_over().run_to_end()
        driver = self.drivers[-1]
        life = driver.life
        if life is None:
            raise Violation("the run cannot be taken over")
        for key in self.unreceipted():
            shape = next(a for a in self.record.attempts.values() if a.key == key)
            names = [path.removeprefix(f"{key}_").removesuffix(".bin") for path in shape.contents]
            self.write(life, [(key, names if f"{key}.bin" not in shape.contents else (), 9)])
        if self.info.dest is not None:
            for index in range(UPLOADERS):
                self.upload(life, index)
        self.close(driver)
        return dict(life.ledger.status().failures)

    def check_clean(self) -> None:
        temps = self.staging(Process("reader", observer=True)).temps()
        if temps:
            raise Violation(f"I4: temps are left: {temps}")

    def forget(self) -> None:
        """Nobody goes on: every thread ends."""
        for process in self._processes:
            process.kill()
        for work in self.works:
            work.run_to_end()
