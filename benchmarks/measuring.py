"""Figures: ratios of medians within one run, since machines differ and are noisy."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        question: ``"B1"`` and so on.
        case: what was measured.
        value: a ratio, or what `unit` says.
        unit: of `value`, such as ``"x plain write"``.
        least: the bar, where it is to be at least that.
        most: the bar, where it is to be at most that.
        seconds: medians by name, what `value` comes from.
        note: what has to be known to read it.
    """

    question: str
    case: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    seconds: Mapping[str, float] | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)


def medians(
    ways: Mapping[str, Callable[[], float | None]], rounds: int = ROUNDS, *, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that what the machine does besides meets all of them.

    Args:
        ways: by name; each does its work once, and returns its seconds if only a part of it counts.
        rounds: turns that count.
        warm_up: one more goes before.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + warm_up):
        for name, way in ways.items():
            began_s = time.perf_counter()
            told_s = way()
            took_s = time.perf_counter() - began_s if told_s is None else told_s
            if number or not warm_up:
                found[name].append(took_s)
    return {name: median(seconds) for name, seconds in found.items()}


def machine() -> dict[str, str]:
    """What the figures were made on."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {cpu}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "numpy", "obstore")},
    }


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return ()


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | case | value | bar | |", "|---|---|---|---|---|"]
    for figure in figures:
        bar = f"≥ {figure.least:g}" if figure.least is not None else ""
        bar = f"≤ {figure.most:g}" if figure.most is not None else bar
        seconds = ", ".join(f"{name} {value:.4g} s" for name, value in (figure.seconds or {}).items())
        verdict = {True: "", False: "**missed** ", None: ""}[figure.holds]
        note = "; ".join(part for part in (seconds, figure.note) if part)
        lines.append(
            f"| {figure.question} | {figure.case} | {figure.value:.3g} {figure.unit} | {bar} | {verdict}{note} |"
        )
    return "\n".join(lines)


def as_json(figures: Iterable[Figure]) -> str:
    """The figures and the machine, for a file."""
    return json.dumps({"machine": machine(), "figures": [asdict(figure) for figure in figures]}, indent=1) + "\n"
