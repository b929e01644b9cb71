"""What the two runs are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from verification import Verdict


@dataclass(slots=True)
class Run:
    """One way of saving, measured.

    Attributes:
        title: names it.
        dest: where its outputs went.
        computed_s: seconds that the model was computing, all actors together.
        waited_s: seconds that it was not, between its first call's begin and its last one's end.
        wall_s: from before the first actor starts until every output is in the store.
        overhead_s: what of that was before the first call of the model and after its last one.
        calls: calls of the model.
        killed_pid: the process that was killed.
        killed_at: outputs that were accepted by then.
        verdict: what was found in the store afterwards.
    """

    title: str
    dest: str
    computed_s: float = 0.0
    waited_s: float = 0.0
    wall_s: float = 0.0
    overhead_s: float = 0.0
    calls: int = 0
    killed_pid: int | None = None
    killed_at: int | None = None
    verdict: Verdict = field(default_factory=Verdict)

    def clock(self, rows: Iterable[Mapping[str, Any]], start: float, end: float) -> None:
        """Add up what the model's calls say of themselves, actor by actor."""
        calls: dict[str, set[tuple[float, float]]] = {}
        for row in rows:
            calls.setdefault(row["actor"], set()).add((row["began"], row["ended"]))
        for spans in calls.values():
            computed = sum(ended - began for began, ended in spans)
            self.computed_s += computed
            self.waited_s += max(ended for _, ended in spans) - min(began for began, _ in spans) - computed
            self.calls += len(spans)
        self.wall_s = end - start
        if calls:
            every = [span for spans in calls.values() for span in spans]
            self.overhead_s = self.wall_s - (max(ended for _, ended in every) - min(began for began, _ in every))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table(runs: list[Run], expected: int) -> Table:
    """The one table that the demo ends with."""
    made = Table(title=f"{expected} outputs, saved twice", title_justify="left")
    made.add_column("")
    for run in runs:
        made.add_column(run.title, justify="right")

    def row(name: str, values: Iterable[str], **style: Any) -> None:
        made.add_row(name, *values, **style)

    row("model waited, s", (f"{run.waited_s:.1f}" for run in runs), style="bold")
    row("model computed, s", (f"{run.computed_s:.1f}" for run in runs))
    row("wall time, s", (f"{run.wall_s:.1f}" for run in runs))
    row("  of it before and after the model", (f"{run.overhead_s:.1f}" for run in runs), end_section=True)
    row("writer killed", ("-" if run.killed_pid is None else f"after {run.killed_at} outputs" for run in runs))
    row("outputs expected", (str(expected) for _ in runs))
    row("lost", (str(len(run.verdict.lost)) for run in runs))
    row("doubled", (str(len(run.verdict.doubled)) for run in runs))
    row("torn or different", (str(len(run.verdict.different)) for run in runs))
    row("verified byte for byte", (str(run.verdict.same) for run in runs))
    return made


def conclusion(direct: Run, sink: Run) -> str:
    """What the table says about time, whichever way it went."""
    waited = direct.waited_s - sink.waited_s
    wall = direct.wall_s - sink.wall_s
    first = (
        f"With the sink the model waited {waited:.1f} s less"
        if waited > 0
        else f"On this machine the model waited {-waited:.1f} s longer with the sink"
    )
    second = f"and the run took {abs(wall):.1f} s {'less' if wall > 0 else 'more'} in all."
    return f"{first}, {second}"
