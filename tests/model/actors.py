"""The processes around the core, as plain objects whose work can be stopped between any two operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ray_sink.config import UploadOptions
from ray_sink.errors import PathConflict, RunFencedError, RunSealedError, SinkError, StagingError
from ray_sink.keys import RESERVED
from ray_sink.ledger import Ledger, LedgerOptions
from ray_sink.manifest import from_parquet, read_seal, seal
from ray_sink.ownership import Claim, FolderPlace, Owner, Place, StorePlace, claim
from ray_sink.patience import Patience, Tick
from ray_sink.publishing import DecidedPublishing, Prepared
from ray_sink.records import Decision, FileRecord, Proposal, Receipt, State, TempFile, UploadOutcome
from ray_sink.retry import Retry, RetryPolicy
from ray_sink.uploader import Uploader
from tests.model.record import Attempt
from tests.model.script import Process, Stopped, Work
from tests.model.store import SimulatedStore

if TYPE_CHECKING:
    from tests.model.world import World

T = TypeVar("T")

TAKEOVER_S = 60.0
UPLOADERS = 2


class LedgerGone(SinkError):
    """The ledger's process ended during a call, or its answer was lost; what it did, nobody knows."""


class Life:
    """One life of a ledger's process. It does one call at a time; the others wait."""

    def __init__(self, world: World, epoch: int, options: LedgerOptions) -> None:
        self.world = world
        self.process = world.process("ledger")
        self.next: Life | None = None
        self.staging = world.staging(self.process)
        self._busy_with: Work | None = None
        self.ledger = self._do(lambda: Ledger.open(self.staging, world.info, epoch, options))

    def call(self, caller: Process, what: Callable[[Ledger], T]) -> T:
        """Call the ledger as another process does. A caller that ends meanwhile does not end the call.

        Where this life is known to have ended, the call goes to the one that Ray has started instead.
        """
        if not self.process.alive and self.next is not None:
            return self.next.call(caller, what)
        script = self.world.script
        if script.working is not None:
            script.working.wait_for(lambda: self._busy_with if self.process.alive else None)
        if not self.process.alive:
            raise LedgerGone("it ended")
        fault, self.world.call_fault = self.world.call_fault, None
        try:
            answer = self._do(lambda: what(self.ledger))
        except LedgerGone:
            if self.next is None or not caller.alive:
                raise
            script.fired("call made again")  # Ray does so
            return self.next.call(caller, what)
        if fault is not None:
            script.fired(fault)
        if fault == "call made twice":  # because the first answer was lost
            answer = self._do(lambda: what(self.ledger))
        if not caller.alive:
            raise Stopped(caller.name)
        if fault == "call lost its answer":
            raise LedgerGone("no answer")
        return answer

    def _do(self, what: Callable[[], T]) -> T:
        """A journal that fails ends the process."""
        self._busy_with = self.world.script.working
        try:
            return what()
        except OSError as error:
            self.process.kill()
            raise LedgerGone("its journal failed") from error
        except Stopped:
            raise LedgerGone("it ended during the call") from None
        finally:
            self._busy_with = None


class Driver:
    """Runs the script: owns the run for one epoch. Its order of calls is that of `ray_sink.sink.Sink`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process = world.process("driver")
        self.fs = world.disk.view(self.process)
        self.store = SimulatedStore(world.bucket, self.process, self.fs)
        self.claim: Claim | None = None
        self.life: Life | None = None
        self.options = LedgerOptions()
        self.closing = False

    def start(self) -> None:
        places: list[Place] = [FolderPlace(self.fs, self.world.disk.root)]
        if self.world.info.dest is not None:
            places.insert(0, StorePlace(self.store))
        owner = Owner("run", "host", 1, self.process.name)
        self.claim = claim(places, owner, takeover_s=TAKEOVER_S, clock=self.world.clock.read, sleep=self._sleep)
        found = read_seal(self.store, "run")
        rows = None
        if found is not None:
            rows = [row for file in found.manifest for row in from_parquet(self.store.get_bytes(file.path))]
        there = {o.path: o.bytes for o in self.store.list() if not o.path.startswith(f"{RESERVED}/")}
        self.options = LedgerOptions(sealed=rows, uploaders=UPLOADERS, foreign=there)
        self.restart_ledger()

    def _sleep(self, seconds: float) -> None:
        self.world.script.step(self.process, "sleeps")
        self.world.clock.sleep(seconds)

    def restart_ledger(self) -> None:
        """A new life of the ledger in this epoch; the old one may go on for a while."""
        assert self.claim is not None
        life = Life(self.world, self.claim.epoch, self.options)
        if self.life is not None:
            self.life.next = life
        self.life = life
        self.world.lives.append(life)

    def beat(self) -> None:
        """What its heart does from time to time."""
        if self.claim is None or self.life is None:
            return
        life = self.life
        try:
            self.claim.beat()
        except RunFencedError as error:
            reason = str(error)
            self.world.script.fired("fenced by its heart")
            life.call(self.process, lambda ledger: ledger.fence(reason))

    def close(self) -> None:
        """Seal the run, if that can be done."""
        if self.closing or self.life is None or self.claim is None:
            return
        self.closing = True
        try:
            life = self.life
            if self.options.sealed is None and not self._seal(life, self.claim):
                return
            life.call(self.process, lambda ledger: life.staging.sweep(ledger.term, finished=True))
            self.claim.release()
        finally:
            self.closing = False

    def _seal(self, life: Life, owned: Claim) -> bool:
        life.call(self.process, Ledger.closing)
        life.call(self.process, Ledger.publish_rest)
        unfinished = life.call(self.process, Ledger.has_unfinished_uploads)
        status = life.call(self.process, Ledger.status)
        if status.failures or status.unfinished or unfinished:
            return False
        owned.check_all()
        life.call(self.process, Ledger.begin_sealing)
        receipts = life.call(self.process, lambda ledger: list(ledger.receipts()))
        seal(self.store, self.world.info, owned.epoch, receipts, status)
        return True


class AtOnce(Patience):
    """Without the threads in which a real file operation can be given up."""

    def within(self, doing: str, call: Callable[[Tick], T]) -> T:
        return call(lambda: None)


class Writing:
    """One batch on its way through a writer, whose order of calls is that of `ray_sink.publishing`."""

    def __init__(self, world: World, life: Life, attempts: Sequence[Attempt]) -> None:
        self.world = world
        self.life = life
        self.term = life.ledger.term
        self.attempts = attempts
        self.process = world.process("writer")
        self.staging = world.staging(self.process)

    def write(self) -> None:
        outputs = []
        for attempt in self.attempts:
            temps: list[TempFile] = []
            for number, (path, data) in enumerate(attempt.contents.items()):
                temps.append(self.staging.stage(self.term, f"{attempt.name}.{number}", path, [data]))
            outputs.append(Prepared(attempt.key, attempt.name, None, tuple(temps)))
        publishing = DecidedPublishing(
            self.staging,
            self.term,
            decide=self._decide,
            published=self._published,
            locate=self._locate,
            patience=AtOnce(600.0),
        )
        for output, result in zip(outputs, publishing.publish(outputs), strict=True):
            if isinstance(result, Receipt):
                self.world.acknowledge(result, self.process)
            elif isinstance(result, PathConflict | RunSealedError):
                self.world.record.refused[output.key] = result
            else:
                # the producer hears it, and tries again
                self.world.script.note(f"{self.process.name}: {output.key}: {type(result).__name__} {result}")

    def _decide(self, proposals: Sequence[Proposal]) -> list[Decision]:
        return self.life.call(self.process, lambda ledger: ledger.decide(proposals))

    def _published(self, attempts: Sequence[tuple[str, str]]) -> list[FileRecord]:
        return self.life.call(self.process, lambda ledger: ledger.published(attempts))

    def _locate(self, keys: Sequence[str]) -> list[Receipt | SinkError]:
        found = self.life.call(self.process, lambda ledger: [ledger.receipt(key) for key in keys])
        return [receipt or StagingError(f"{key!r} is gone") for key, receipt in zip(keys, found, strict=True)]


class Uploading:
    """One life of an uploader: it takes the place of the one before it, which may go on for a while."""

    def __init__(self, world: World, life: Life, index: int, *, tasks: int = 3) -> None:
        self.world = world
        self.life = life
        self.index = index
        self.process = world.process(f"uploader{index}_")
        self.staging = world.staging(self.process)
        self._tasks = tasks
        retry = Retry(
            RetryPolicy(attempts=6, first_s=30),  # waits long enough for a name that is seen late
            clock=world.clock.read,
            sleep=self._sleep,
            uniform=lambda a, b: b,
        )
        self._uploader = Uploader(
            SimulatedStore(world.bucket, self.process, world.disk.view(self.process)),
            world.disk.root,
            "run",
            UploadOptions(),
            retry=retry,
            clock=world.clock.read,
        )

    def _sleep(self, seconds: float) -> None:
        self.world.script.step(self.process, "sleeps")
        self.world.clock.sleep(seconds)

    def upload(self) -> None:
        """As `ray_sink.runtime.uploading` does, until nothing is left."""
        self.staging.free(self.life.call(self.process, lambda ledger: ledger.unfreed(self.index)))
        while tasks := self.life.call(
            self.process, lambda ledger: ledger.take_uploads(self.index, max_outputs=self._tasks, max_bytes=2**20)
        ):
            outcomes = [self._uploader.upload(task) for task in tasks]
            self._report(outcomes)

    def _report(self, outcomes: Sequence[UploadOutcome]) -> None:
        free = self.life.call(self.process, lambda ledger: ledger.uploaded(outcomes))
        self.staging.free(free)
        keys = [outcome.key for outcome in outcomes if outcome.error is None]
        for receipt in self.life.call(self.process, lambda ledger: [ledger.receipt(key) for key in keys]):
            if receipt is not None and receipt.state is State.UPLOADED:
                self.world.acknowledge(receipt, self.process)
