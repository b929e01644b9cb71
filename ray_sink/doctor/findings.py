"""What a look found, and what follows for each promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """How a look came out, worst last."""

    NOTE = "note"
    """A fact; no promise hangs on it."""
    OK = "ok"
    WEAK = "weak"
    """The promise holds in a weaker form, which the message names."""
    FAILED = "failed"
    """A promise cannot hold here."""


class Verdict(StrEnum):
    """What can be said of one promise."""

    HOLDS = "holds"
    WEAKER = "weaker"
    CANNOT_HOLD = "cannot hold"
    NOT_CHECKED = "not checked"


PROMISES: Final = {
    "P1": "atomic: no reader sees part of an output",
    "P2": "durable: what has a receipt survives a power cut",
    "P3": "once: a key has one attempt's files",
    "P4": "no silence: nothing is dropped unsaid",
    "P5": "resume: a new start finishes what was left",
    "P6": "bounded: memory and disks stay within limits",
    "P7": "sealed: _SUCCESS is created once, last",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    Attributes:
        area: ``"staging"``, ``"temp"``, ``"destination"`` or ``"installation"``.
        name: what was tried; constant.
        status: how it came out.
        message: what was seen.
        advice: what to do about it; empty where nothing is to be done.
        promises: the promises that rest on it.
    """

    area: str
    name: str
    status: Status
    message: str
    advice: str = ""
    promises: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromiseVerdict:
    """What the findings mean for one promise.

    Attributes:
        promise: ``"P1"`` to ``"P7"``.
        title: the promise in words.
        verdict: the worst that any finding allows.
        because: the messages of those findings that weaken it.
    """

    promise: str
    title: str
    verdict: Verdict
    because: tuple[str, ...]


def verdicts(findings: Iterable[Finding]) -> list[PromiseVerdict]:
    """One verdict for each promise."""
    known = list(findings)
    return [
        _verdict(promise, title, [f for f in known if promise in f.promises]) for promise, title in PROMISES.items()
    ]


def _verdict(promise: str, title: str, findings: list[Finding]) -> PromiseVerdict:
    for status, verdict in ((Status.FAILED, Verdict.CANNOT_HOLD), (Status.WEAK, Verdict.WEAKER)):
        worst = tuple(f"{f.area} {f.name}: {f.message}" for f in findings if f.status is status)
        if worst:
            return PromiseVerdict(promise, title, verdict, worst)
    looked = any(finding.status is Status.OK for finding in findings)
    return PromiseVerdict(promise, title, Verdict.HOLDS if looked else Verdict.NOT_CHECKED, ())
