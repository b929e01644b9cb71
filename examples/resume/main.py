"""A run whose driver is killed half way, with everything that it had started; then the same script again.

    python main.py                                            40 outputs, below runs/resume
    python main.py --outputs 100000 --actors 8 --dest s3://bucket/resume --staging /mnt/shared/resume

The first try is a process of its own that gets a SIGKILL when half of the outputs are decided. The second finishes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.data
import torch

import ray_sink
from ray_sink import Limits, Sink

TAKEOVER_S = 10


class Model:
    """Takes a while for each row, and leaves a line in a file for each: that is what the end counts."""

    def __init__(self, log: str) -> None:
        self.log = Path(log)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        fields = []
        for seed in batch["id"].tolist():
            noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(seed))
            fields.append(torch.linalg.matrix_exp(noise / 64))
            with self.log.open("a") as file:
                file.write(f"{seed}\n")
        return {"id": batch["id"], "field": torch.stack(fields)}


def job(given: argparse.Namespace, log: Path) -> None:
    """What a user's own script does, and all that it has to do for a resume: nothing."""
    # a minute by default: a driver that only hangs for a while should not lose its run
    limits = Limits(takeover_s=TAKEOVER_S)
    with Sink(given.dest, staging=given.staging.resolve(), limits=limits) as sink:
        sink.run(
            ray.data.range(given.outputs, override_num_blocks=max(1, given.outputs // 4)),
            Model,
            key="field/{id:06d}",
            fn_constructor_args=(str(log),),
            batch_size=2,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
        )


def killed_half_way(given: argparse.Namespace, log: Path) -> int:
    """Run the job in a process of its own and kill it; returns how many rows it had computed."""
    first = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--job", str(log)])
    while _computed(log) < given.outputs // 2:
        if first.poll() is not None:
            raise SystemExit(f"the first try ended by itself, with {first.returncode}")
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)  # Ray's processes on this machine go with their driver
    first.wait()
    return _computed(log)


def _computed(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=40, help="outputs, 256 kB each (%(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="actors with a model each (%(default)s)")
    parser.add_argument("--dest", default="runs/resume", help="any fsspec URL or folder (%(default)s)")
    parser.add_argument("--staging", type=Path, default=Path("runs/resume-staging"), help="a folder that all nodes see")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.staging.mkdir(parents=True, exist_ok=True)
    if given.job:
        job(given, given.job)
        return

    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        log = Path(folder) / "computed"
        before = killed_half_way(given, log)
        print(f"killed after {before} of {given.outputs} rows were computed; nothing is sealed")
        began = time.monotonic()
        job(given, log)
        took = time.monotonic() - began
        again = _computed(log) - given.outputs
    manifest = ray_sink.open(given.dest)
    print(f"the same script again: {took:.1f} s, of them {TAKEOVER_S} to be sure that the first one is dead")
    print(f"{len(manifest)} outputs are there, each once; {again} rows, on their way when it died, were computed again")
    print(f"rows in / out / skipped: {manifest.seal.rows}")
    assert len(manifest) == given.outputs
    assert len(set(manifest)) == given.outputs


if __name__ == "__main__":
    main()
