"""The processes around the core, as plain objects that can be stopped between any two of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ray_sink.config import UploadOptions
from ray_sink.errors import PathConflict, RunSealedError, SinkError
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import from_parquet, read_seal, seal
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.records import FileRecord, Proposal, Receipt, State, TempFile, UploadOutcome, receipt_of
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.uploader import Uploader
from tests.model.record import Attempt
from tests.model.script import Process, Stopped
from tests.model.store import SimulatedStore

if TYPE_CHECKING:
    from tests.model.world import World

T = TypeVar("T")

TAKEOVER_S = 60.0


class LedgerGone(Exception):
    """The ledger's process ended during a call; what it did, nobody knows."""


class Life:
    """One life of a ledger's process."""

    def __init__(self, world: World, epoch: int, options: LedgerOptions) -> None:
        self.world = world
        self.process = world.process("ledger")
        self.staging = world.staging(self.process)
        self.ledger = self.call(lambda: Ledger.open(self.staging, world.info, epoch, options))

    def call(self, what: Callable[[], T]) -> T:
        """Call the ledger as another process does. A journal that fails ends it."""
        if not self.process.alive or self.process.asleep:
            raise LedgerGone
        try:
            return what()
        except OSError as error:
            self.process.kill()
            raise LedgerGone from error
        except Stopped:
            raise LedgerGone from None


class Driver:
    """Owns a run for one epoch."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = world.process("driver")
        fs = world.disk.view(self.process)
        self.store = SimulatedStore(world.bucket, self.process, fs)
        self.staging = world.staging(self.process)
        places: list[Place] = [FolderPlace(fs, world.disk.root)]
        if world.info.dest is not None:
            places.insert(0, StorePlace(self.store))
        owner = Owner("run", "host", 1, self.process.name)
        self.claim: Claim = claim(places, owner, takeover_s=TAKEOVER_S, clock=world.clock.read, sleep=world.clock.sleep)
        self.life: Life | None = None
        self.options = LedgerOptions()
        found = read_seal(self.store, "run")
        if found is not None:
            rows = [row for file in found.manifest for row in from_parquet(self.store.get_bytes(file.path))]
            self.options = LedgerOptions(sealed=rows)
        self.life = Life(world, self.claim.epoch, self.options)

    def restart_ledger(self) -> None:
        """A new life of the ledger in this epoch; the old one may go on for a while."""
        if not self.process.alive:
            raise Stopped(self.process.name)
        self.life = None
        self.life = Life(self.world, self.claim.epoch, self.options)

    def seal(self) -> bool:
        """Close the run, if it can be closed; whether it is sealed now."""
        if self.life is None or not self.process.alive or self.process.asleep:
            return False
        life, ledger = self.life, self.life.ledger
        if self.options.sealed is None and not self._seal(life):
            return False
        life.call(lambda: life.staging.sweep(ledger.term, finished=True))
        self.claim.release()
        return True

    def _seal(self, life: Life) -> bool:
        ledger = life.ledger
        life.call(ledger.publish_rest)
        status = ledger.status()
        if status.failures or status.unfinished or ledger.has_unfinished_uploads():
            return False
        life.call(ledger.begin_sealing)
        receipts = life.call(lambda: list(ledger.receipts()))
        self.claim.check_all()
        seal(self.store, self.world.info, self.claim.epoch, receipts, status)
        return True


class Work:
    """Something that is done in steps; `run` goes on from wherever it was stopped."""

    world: World
    process: Process
    _steps: Iterator[None]
    _running = False

    def run(self, steps: int = 1000) -> bool:
        """Do up to so many steps; whether there is more to do."""
        for _ in range(steps):
            if self._running:
                return True
            self._running = True
            try:
                next(self._steps)
            except StopIteration:
                return False
            except (SinkError, LedgerGone, Stopped, OSError) as error:
                # the producer hears an error, or nothing, and tries again
                self.world.script.note(f"{self.process.name} gave up: {type(error).__name__} {error}")
                return False
            finally:
                self._running = False
        return True


class Writing(Work):
    """One batch on its way through a writer."""

    def __init__(self, world: World, life: Life, attempts: Sequence[Attempt]) -> None:
        self.world = world
        self.life = life
        self.term = life.ledger.term
        self.attempts = attempts
        self.process = world.process("writer")
        self.staging = world.staging(self.process)
        self._steps = self._go()

    def _go(self) -> Iterator[None]:
        proposals = []
        for attempt in self.attempts:
            temps: list[TempFile] = []
            for number, (path, data) in enumerate(attempt.contents.items()):
                temps.append(self.staging.stage(self.term, f"{attempt.name}.{number}", path, [data]))
                yield
            proposals.append(Proposal(attempt.key, attempt.name, tuple(temps)))
        self.staging.sync_temps(self.term)
        yield
        ledger = self.life.ledger
        decisions = self.life.call(lambda: ledger.decide(proposals))
        yield
        winners = {d.key: d.winner for d in decisions if d.winner is not None and d.receipt is None}
        vanished = self.staging.publish(list(winners.values()))
        yield
        done = [winner for key, winner in winners.items() if key not in vanished]
        self.life.call(lambda: ledger.published([(winner.key, winner.attempt) for winner in done]))
        for winner in done:
            self.world.acknowledge(receipt_of(winner, State.STAGED, str(self.world.disk.root)), self)
        yield
        for key in vanished:
            found = self.life.call(lambda key=key: ledger.receipt(key))  # type: ignore[misc]
            if found is not None:
                self.world.acknowledge(found, self)
        for decision in decisions:
            if decision.receipt is not None:
                self.world.acknowledge(decision.receipt, self)
            elif isinstance(decision.error, PathConflict | RunSealedError):
                self.world.record.refused[decision.key] = decision.error
        yield
        self.staging.drop(
            p for p, d in zip(proposals, decisions, strict=True) if d.winner is None or d.winner.attempt != p.attempt
        )


class Uploading(Work):
    """An uploader's way through some tasks."""

    def __init__(self, world: World, life: Life, *, instead_of_the_last: bool, tasks: int = 3) -> None:
        self.world = world
        self.life = life
        self.process = world.process("uploader")
        self.staging = world.staging(self.process)
        self._instead = instead_of_the_last
        self._tasks = tasks
        self.keys: frozenset[str] = frozenset()
        fs = world.disk.view(self.process)
        retry = Retry(RetryPolicy(attempts=6), clock=world.clock.read, sleep=world.clock.sleep, uniform=lambda a, b: b)
        self._uploader = Uploader(
            SimulatedStore(world.bucket, self.process, fs),
            world.disk.root,
            "run",
            UploadOptions(),
            retry=retry,
            clock=world.clock.read,
        )
        self._steps = self._go()

    def _go(self) -> Iterator[None]:
        ledger: Ledger = self.life.ledger
        holding = frozenset[str]()
        if not self._instead:  # another goes on beside this one
            holding = frozenset(key for other in self.world.uploadings for key in other.keys)
        tasks = self.life.call(
            lambda: ledger.take_uploads(0, holding=holding, max_outputs=self._tasks, max_bytes=2**20)
        )
        self.keys = frozenset(task.key for task in tasks)
        yield
        outcomes: list[UploadOutcome] = []
        for task in tasks:
            outcomes.append(self._uploader.upload(task))
            yield
        free: list[FileRecord] = self.life.call(lambda: ledger.uploaded(outcomes))
        yield
        for outcome in outcomes:
            receipt: Receipt | None = self.life.call(lambda key=outcome.key: ledger.receipt(key))  # type: ignore[misc]
            if receipt is not None and receipt.state is State.UPLOADED:
                self.world.acknowledge(receipt, self)
        yield
        self.staging.free(free)
