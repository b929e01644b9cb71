"""What the actors say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_sink.config import Ack, Limits, UploadOptions, WriterOptions
from ray_sink.errors import SinkError
from ray_sink.measures import ProducerMeasures
from ray_sink.records import Receipt, RunInfo


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that an actor of a run must know; no secret is in it.

    Attributes:
        info: the run.
        epoch: the driver's epoch.
        format: the user's `Format`, or a `SaveFormat`.
        ack: what a ticket waits for.
        writers: the writers' options.
        upload: the uploaders' options.
        limits: the budgets.
        node_local: the staging folder, where each node has its own; see `ray_sink.NodeLocal`.
    """

    info: RunInfo
    epoch: int
    format: Any
    ack: Ack
    writers: WriterOptions
    upload: UploadOptions
    limits: Limits
    node_local: str | None = None


@dataclass(frozen=True, slots=True)
class WriterInfo:
    """A writer actor in the roster.

    Attributes:
        name: unique.
        node: node id of the producers that it serves.
        place: node id of where it runs, once it does.
        actor: its actor handle; None where there is none, or none for so long that others serve its node meanwhile.
        error: why there is none, and will be none.
        going: its node drains: it serves until another does.
    """

    name: str
    node: str
    place: str = ""
    actor: Any = None
    error: SinkError | None = None
    going: bool = False


@dataclass(frozen=True, slots=True)
class RosterNews:
    """What the driver says about the writers.

    Attributes:
        writers: those that producers may have, and those that there will not be.
        starting: how many are being started, by the node whose producers they will serve.
        leaving: names of those that get nothing more and finish what they have.
        draining: ids of the nodes that drain.
        gone: ids of nodes that a writer was wanted for and that are not there any more.
    """

    writers: tuple[WriterInfo, ...]
    starting: Mapping[str, int]
    leaving: frozenset[str] = frozenset()
    draining: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RosterWish:
    """What the coordinator wants of the driver.

    Attributes:
        missing: how many writers to create, by the node whose producers they serve.
        failed: names of writers that producers found dead.
    """

    missing: Mapping[str, int]
    failed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.missing or self.failed)


@dataclass(frozen=True, slots=True)
class Submission:
    """One batch of outputs, from a handle to a writer.

    Attributes:
        keys: a key for each output.
        attempts: an attempt id for each output.
        sources: an input row's identity for each output, or None.
        measures: what the handle has counted so far.
    """

    keys: tuple[str, ...]
    attempts: tuple[str, ...]
    sources: tuple[str | None, ...]
    measures: ProducerMeasures


@dataclass(frozen=True, slots=True)
class WriteReply:
    """A writer's answer.

    Attributes:
        outcomes: for each output its receipt, or why it failed.
        credit_wanted: others wait for credit: return what is not in use.
        leaving: the writer's node drains: send it nothing more.
    """

    outcomes: tuple[Receipt | Exception, ...]
    credit_wanted: bool = False
    leaving: bool = False
