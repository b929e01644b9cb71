"""The power goes at any moment of a run: what a disk may then have lost is taken away, and the run is run again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.plan import Plan
from tests.faults.power import CALLS, states
from tests.faults.processes import Call, Jobs
from tests.faults.runs import ALL, Run, some

PLAN = Plan(outputs=4, split=True)
AT_A_TIME = ("--batch", 2, "--nonce", "x")
_SAID = re.compile(r'^1<.*?>, "(.*)\\n", \d+\)')

pytestmark = pytest.mark.timeout(0 if ALL else 120)


def said_by(calls: list[Call]) -> list[Mapping[str, object]]:
    """What the job had said when it had made these calls."""
    lines = [match[1] for call in calls if call.name == "write" and (match := _SAID.match(call.text))]
    return [json.loads(line.replace('\\"', '"').replace("\\\\", "\\")) for line in lines]


@pytest.mark.row(22)
def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(jobs: Jobs, tmp_path: Path) -> None:
    whole = Run.at(jobs, tmp_path / "whole", PLAN, *AT_A_TIME, with_dest=False)
    job = whole.start("--takeover-s", 60, trace=CALLS, text_bytes=4096)
    assert whole.hear(job) == 0
    calls = job.calls()
    contents = whole_contents(whole, calls)
    assert said_by(calls) == job.said()
    moments = [
        (number, call, dict(disk.after_power_cut()))
        for number, call, disk in states(calls, str(whole.staging))
        if str(whole.staging) in call.text or call.text.startswith("1<")
    ]
    # what the calls add up to is what is there
    *_, (_, _, disk) = states(calls, str(whole.staging))
    assert disk.sizes() == {
        str(path.relative_to(whole.staging)): None if path.is_dir() else path.stat().st_size
        for path in whole.staging.rglob("*")
    }
    for number, call, left in some(moments, 12):
        run = Run.at(jobs, tmp_path / str(number), PLAN, *AT_A_TIME, with_dest=False)
        rebuild(run.staging, left, contents)
        run.checker.hear(said_by(calls[:number]))
        try:
            run.checker.unfinished()  # under its final name, before anybody rolls anything forward
            run.again("--nonce", "y")
        except BaseException as error:
            error.add_note(f"the power went before {call}; there was left {left}")
            raise


def whole_contents(run: Run, calls: list[Call]) -> dict[str, bytes]:
    """What every file of the run held in the end, under each name that it ever had."""
    contents = {name: run.checker.staging.read(name) for name in run.checker.staging.names()}
    for call in reversed(calls):
        if call.name in ("rename", "link"):
            source, target = (Path(name) for name in re.findall(r'"([^"]*)"', call.text))
            if source.is_relative_to(run.staging):
                name, to = str(source.relative_to(run.staging)), str(target.relative_to(run.staging))
                if to in contents:
                    contents.setdefault(name, contents[to])
    return contents


def rebuild(root: Path, left: Mapping[str, int | None], contents: Mapping[str, bytes]) -> None:
    for name, size in left.items():
        if size is None:
            (root / name).mkdir()
        else:
            # of a file that is gone in the end nothing is left but its size
            (root / name).write_bytes(contents.get(name, bytes(size))[:size])
