"""A run over the nodes, as often as its script is started."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_sink.keys import RESERVED
from tests.cluster.nodes import Node, Nodes
from tests.cluster.patience import PATIENCE_S, eventually
from tests.cluster.pods import SHARED
from tests.faults.clusters import ClusterJob
from tests.faults.invariants import Checker
from tests.faults.plan import Plan
from tests.faults.s3_jobs import Objects
from tests.servers import S3Bucket

WRITERS = "ray::WriterShell"


class NodesRun:
    """A run in a folder of its own on the shared filesystem, to a bucket of its own.

    Args:
        nodes: where it runs.
        shared: the shared filesystem, as this process has it.
        bucket: where its outputs go.
        plan: its outputs.
        more: further arguments of the job.
    """

    def __init__(self, nodes: Nodes, shared: Path, bucket: S3Bucket, plan: Plan, *more: object) -> None:
        self.nodes = nodes
        self.plan = plan
        self._job: ClusterJob | None = None
        name = uuid.uuid4().hex[:12]
        self.folder = shared / name
        for place in (self.folder / "staging", self.folder / "calls", self.folder / "held"):
            place.mkdir(parents=True)
        self.pace(0)
        self._objects = Objects(bucket)
        self.checker = Checker(self.folder / "staging", self._objects, "run-1", plan.contents())
        self._arguments = [
            *("--folder", SHARED / name, "--dest", bucket.url),
            *("--outputs", plan.outputs, "--elements", plan.elements, *more),
        ]

    def pace(self, call_s: float) -> None:
        """What a call of the model takes from now on, seconds."""
        (self.folder / "next").write_text(str(call_s))
        (self.folder / "next").replace(self.folder / "pace")

    def hold(self) -> None:
        """Have writers wait before they stage anything, in a run with ``--held``."""
        (self.folder / "hold").touch()

    def let_go(self) -> None:
        """Have them go on."""
        (self.folder / "hold").unlink()

    def holds(self, node: Node) -> bool:
        """Whether a writer there waits."""
        return any(path.name.startswith(f"{node.pod.name}-") for path in (self.folder / "held").iterdir())

    def start(self, on: Node | None = None) -> ClusterJob:
        """Its driver, on the head or on another node."""
        within = (on or self.nodes.head).pod.entering()
        arguments = ["--address", self.nodes.address, *self._arguments]
        self._job = ClusterJob("tests.cluster.job", *arguments, within=within, env=self.nodes.env)
        return self._job

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds, and at the latest when the job has ended."""
        job = self._job
        assert job is not None
        eventually(lambda: condition() or not job.running)
        assert condition(), (job.facts[-3:], job.complained()[-4000:])

    def decides(self, more: int) -> None:
        """Return when so many more outputs are decided than now."""
        assert self._job is not None
        before = self._job.decided
        self.until(lambda: self._job is not None and self._job.decided >= before + more)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call of the model: host, the first row, and when it began and ended on this machine's clock."""
        files = sorted((self.folder / "calls").iterdir())
        lines = [line for file in files for line in file.read_text().splitlines()]
        return sorted((json.loads(line) for line in lines), key=lambda call: float(call["ended"]))

    def computed_on(self, node: Node) -> set[int]:
        """The first rows of the model's calls there."""
        return {call["first"] for call in self.calls if call["host"] == node.pod.name}

    def temps(self) -> set[Path]:
        """Files of attempts that are not decided, or lost and not removed."""
        return set((self.folder / "staging" / RESERVED / "run-1" / "tmp").glob("*/*"))

    def has_staged(self, node: Node) -> bool:
        """Whether there are temps, and all are complete, and no writer there has a file of the staging folder open."""
        opened = [path for pid in node.pod.pids(WRITERS) for path in open_files(pid)]
        return self._are_whole(self.temps()) and not any(self.folder.name in path for path in opened)

    def temps_of(self, node: Node) -> set[Path]:
        """The same on a node's own disk, of a run with ``--node-local``."""
        return set((node.pod.tmp / RESERVED / "run-1").glob("*/*"))

    def has_staged_there(self, node: Node) -> bool:
        """Whether there are some, and all are complete."""
        return self._are_whole(self.temps_of(node))

    def _are_whole(self, files: set[Path]) -> bool:
        whole = {len(data) for choices in self.checker.contents.values() for data in choices}
        sizes = {file.stat().st_size for file in files}
        return bool(sizes) and sizes <= whole

    def landed(self) -> dict[str, str]:
        """What tells one version of an object from the next, by path."""
        found = self._objects.listed()
        return {name: version for name, version in found.items() if not name.startswith(f"{RESERVED}/")}

    def is_decided(self, number: int) -> bool:
        """Whether an output is under its final name, staged or uploaded."""
        return all(
            (self.folder / "staging" / path).exists() or path in self.landed() for path, _ in self.plan.files_of(number)
        )

    def computes_on(self, *nodes: Node) -> None:
        """Return when the model was called on each of these nodes."""
        names = {node.pod.name for node in nodes}
        self.until(lambda: names <= {call["host"] for call in self.calls})

    def finished(self, job: ClusterJob, deadline_s: float = PATIENCE_S) -> None:
        """The job ends well, and everything holds: every byte is compared with what it computed."""
        status = job.wait(deadline_s)
        assert status == 0, (job.facts[-3:], job.complained()[-4000:])
        assert job.said("sealed") == [self.plan.outputs]
        self.checker.finished()


def open_files(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found
