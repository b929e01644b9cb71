"""What the package tells the log: events with constant names and fields.

A handler finds the name in ``record.event`` and the fields in ``record.fields``; the message reads as one line of
``name key=value``. Errors reach events after their text was cleared of secrets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Protocol

LOGGER_NAME = "ray_sink"
_LOGGER = logging.getLogger(LOGGER_NAME)  # to ask for it by name takes the lock of all logging


class Event(Protocol):
    """A frozen dataclass whose fields are numbers and text.

    Attributes:
        NAME: its constant name.
        LEVEL: a level of `logging`.
    """

    NAME: ClassVar[str]
    LEVEL: ClassVar[int]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


@dataclass(frozen=True, slots=True)
class UploadRetried:
    """A put failed for now and will be tried again.

    Attributes:
        path: the object's path relative to the destination.
        failed_try: number of the try that failed, from 1.
        pause_s: time until the next one, seconds.
        slow_down: the store asked for less, or did not keep up.
        reason: the error's message.
        part: number of the part that goes again alone, from 1; None: the whole file does.
    """

    NAME: ClassVar[str] = "upload_retried"
    LEVEL: ClassVar[int] = logging.WARNING

    path: str
    failed_try: int
    pause_s: float
    slow_down: bool
    reason: str
    part: int | None = None


@dataclass(frozen=True, slots=True)
class ConcurrencyChanged:
    """The uploader takes more, or fewer, objects at a time.

    Attributes:
        before: objects in flight allowed until now.
        after: objects in flight allowed from now on.
    """

    NAME: ClassVar[str] = "upload_concurrency_changed"
    LEVEL: ClassVar[int] = logging.INFO

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file is in the store.

    Attributes:
        path: the object's path relative to the destination.
        bytes: size in bytes.
        took_s: from the first try until the store's answer, seconds.
        verification: what the upload proved, a value of `ray_sink.records.Verification`.
        adopted: it was there already, proven to be ours, and was not sent again.
    """

    NAME: ClassVar[str] = "uploaded"
    LEVEL: ClassVar[int] = logging.DEBUG

    path: str
    bytes: int
    took_s: float
    verification: str
    adopted: bool


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """An output could not be uploaded; its staged files stay.

    Attributes:
        key: the user's key, or the path where there is no key.
        reason: the error's message.
    """

    NAME: ClassVar[str] = "upload_failed"
    LEVEL: ClassVar[int] = logging.ERROR

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class DiskFull:
    """A writer waits for room on a disk.

    Attributes:
        reason: the error's message, which names the disk.
    """

    NAME: ClassVar[str] = "disk_full"
    LEVEL: ClassVar[int] = logging.WARNING

    reason: str


@dataclass(frozen=True, slots=True)
class BeatMissed:
    """An owner could not move its counter on; it tries again.

    Attributes:
        epoch: the owner's epoch.
        reason: the error's message.
    """

    NAME: ClassVar[str] = "beat_missed"
    LEVEL: ClassVar[int] = logging.WARNING

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseMissed:
    """An owner could not say that it has left: the next one waits until its counter has stood still for long enough.

    Attributes:
        epoch: the owner's epoch.
        place: the root that it leaves.
        reason: the error's message.
    """

    NAME: ClassVar[str] = "release_missed"
    LEVEL: ClassVar[int] = logging.WARNING

    epoch: int
    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class PromiseWeaker:
    """Where a run lives holds a promise in a weaker form only; found when it starts.

    Attributes:
        area: ``"staging"`` or ``"destination"``.
        name: what was looked at.
        promises: the promises in question, ``"P3,P7"``.
        reason: what was seen.
        advice: what to do about it.
    """

    NAME: ClassVar[str] = "promise_weaker"
    LEVEL: ClassVar[int] = logging.WARNING

    area: str
    name: str
    promises: str
    reason: str
    advice: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A driver's part of a run is done; ``report.json`` at the destination says more.

    Attributes:
        run_id: the run.
        epoch: the driver's epoch.
        outputs: outputs that got a receipt.
        bytes: their size as tensors, in bytes.
        wall_s: how long it took, seconds.
        copy_s: how long producers were held up by copying, seconds.
        device_s: by waiting for room on a GPU, seconds.
        credit_s: by waiting for room elsewhere, seconds.
        receipt_s: by waiting for receipts, seconds.
        upload_retries: tries to upload that failed and were followed by another.
        failures: outputs that failed.
    """

    NAME: ClassVar[str] = "run_ended"
    LEVEL: ClassVar[int] = logging.INFO

    run_id: str
    epoch: int
    outputs: int
    bytes: int
    wall_s: float
    copy_s: float
    device_s: float
    credit_s: float
    receipt_s: float
    upload_retries: int
    failures: int


@dataclass(frozen=True, slots=True)
class ReportMissed:
    """A run's ``report.json`` could not be written; nothing else is wrong with the run for that.

    Attributes:
        run_id: the run.
        reason: the error's message.
    """

    NAME: ClassVar[str] = "report_missed"
    LEVEL: ClassVar[int] = logging.WARNING

    run_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProducerWaited:
    """A producer that wrote from a GPU has ended: what it stood still for.

    Attributes:
        place: ``"device"``, where copies of outputs left no room.
        waited_s: in all, seconds.
    """

    NAME: ClassVar[str] = "producer_waited"
    LEVEL: ClassVar[int] = logging.INFO

    place: str
    waited_s: float


def emit(event: Event, logger: logging.Logger | None = None) -> None:
    """Log `event`; cheap where its level is off."""
    logger = logger or _LOGGER
    if not logger.isEnabledFor(event.LEVEL):
        return
    values = fields_of(event)
    # JSON keeps a line a line, whatever a key or a server's message holds
    text = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
    logger.log(event.LEVEL, "%s %s", event.NAME, text, extra={"event": event.NAME, "fields": values})


def fields_of(event: Event) -> Mapping[str, object]:
    """The fields of `event` by name."""
    return {field.name: getattr(event, field.name) for field in fields(event)}
