"""Beyond one machine: how many writers and uploaders, how much staging, how long a store may be down.

    python -m benchmarks.scale [--gpus 64 --rate 0.5 --output-mib 16 …] [--costs benchmarks.json]

A model (`plant.py`) is fed with what each step costs alone on this machine, or with the CPU that B5 saw in
`benchmarks.json`. It is first held against the real pipeline with 1, 2 and 4 writers here, at full speed; every figure
of that is model / real. Then it is asked about clusters.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.costs import measured, read
from benchmarks.measuring import Figure, table
from benchmarks.plant import Costs, Outcome, Plant, Run
from benchmarks.reality import Work, at_full_speed, through

MiB: Final = 2**20
THROUGH: Final = 0.95  # steps begin and end at the edges of what is counted
_STEPS: Final = 20
_WRITERS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_UPLOADERS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_WORKS: Final = (Work("4 KiB, 64 a batch", 4096, 64, 96), Work("16 MiB, 1 a batch", 16 * MiB, 1, 24))
CLUSTERS: Final = (
    Plant(1, 0.2e9, 16 * MiB, gpus_per_node=1),
    Plant(8, 0.5e9, 16 * MiB, staging_bytes_s=10e9, store_bytes_s=10e9),
    Plant(64, 0.5e9, 16 * MiB, staging_bytes_s=50e9, store_bytes_s=50e9, store_puts_s=3500),
    Plant(1000, 0.1e9, 16 * MiB, staging_bytes_s=200e9, store_bytes_s=200e9, store_puts_s=28000),
    Plant(1000, 0.1e9, 1 * MiB, batch=64, staging_bytes_s=200e9, store_bytes_s=200e9, store_puts_s=28000),
)


@dataclass(frozen=True, slots=True)
class Sized:
    """What a cluster needs.

    Attributes:
        plant: it, with its writers and uploaders.
        outcome: what comes of it.
        enough: no queue grows.
        through: the part of what GPUs put out that gets through; when all buffers are full they wait for the rest.
        down_s: how long the store may be down until a GPU waits.
    """

    plant: Plant
    outcome: Outcome
    enough: bool
    through: float
    down_s: float


def sized(plant: Plant, costs: Costs) -> Sized:
    """The fewest writers, then the fewest uploaders, that bring what GPUs put out, or as much as any number would."""

    def run(writers: int, uploaders: int) -> tuple[Plant, Outcome]:
        tried = replace(plant, writers=writers, uploaders=uploaders)
        return tried, Run(tried, costs).run((_STEPS + 64 // plant.gpus) * plant.step_s)

    most = run(_WRITERS[-1], _UPLOADERS[-1])[1]
    demand = plant.gpus * plant.gpu_bytes_s
    staged = min(THROUGH * demand, 0.99 * most.staged_bytes_s)
    uploaded = min(THROUGH * demand, 0.99 * most.uploaded_bytes_s)
    writers = _least(_WRITERS, lambda count: run(count, _UPLOADERS[-1])[1].staged_bytes_s >= staged)
    uploaders = _least(_UPLOADERS, lambda count: run(writers, count)[1].uploaded_bytes_s >= uploaded)
    chosen, outcome = run(writers, uploaders)
    through = min(outcome.staged_bytes_s, outcome.uploaded_bytes_s) / demand
    return Sized(chosen, outcome, through >= 0.99 * THROUGH, through, down_s(chosen, outcome))


def _least(ladder: Sequence[int], enough: Callable[[int], bool]) -> int:
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(ladder[middle]) else (middle + 1, high)
    return ladder[low]


def down_s(plant: Plant, outcome: Outcome) -> float:
    """Seconds for which staging and the object stores take what GPUs put out, from where they are in steady state.

    The model itself says the same (tests); this needs no hours of simulated time.
    """
    accepted = min(plant.nodes * plant.object_store_bytes, plant.gpus * plant.inflight_outputs * plant.output_bytes)
    room = plant.staging_bytes + accepted
    under_way = plant.nodes * outcome.unacknowledged * plant.output_bytes
    return max(0.0, room - under_way - outcome.staged_bytes) / (plant.gpus * plant.gpu_bytes_s)


def check(costs: Costs) -> Iterator[Figure]:
    """The model against the real pipeline."""
    for writers in (1, 2, 4):
        real = through(writers, _WORKS)
        for work in _WORKS:
            took = real[work.name]
            model = Run(at_full_speed(work, writers), costs, batches=work.batches).run(600.0)
            for what, said_s, was_s in (
                ("all staged", model.staged_s, took.staged_s),
                ("all uploaded", model.ended_s, took.uploaded_s),
                ("CPU", model.cores_s, took.cpu_s),
            ):
                seconds = {"model": float("nan") if said_s is None else said_s, "real": was_s}
                case = f"{work.name}, {writers} writer{'s'[: writers > 1]}: {what}"
                yield Figure("scale", case, seconds["model"] / was_s, "x real", seconds=seconds)


def about(plant: Plant, costs: Costs) -> Iterator[Figure]:
    """What one cluster needs."""
    found = sized(plant, costs)
    loads = ", ".join(f"{name} {100 * load:.0f} %" for name, load in found.outcome.loads.items())
    rate = plant.gpus * plant.gpu_bytes_s
    case = f"{plant.gpus} GPUs, {plant.gpu_bytes_s / 1e9:g} GB/s each in {plant.output_bytes / MiB:g} MiB"
    lacking = "" if found.enough else f"; **{100 * found.through:.0f} % gets through**, GPUs wait for the rest"
    node_s = found.outcome.unacknowledged * plant.output_bytes / plant.gpu_bytes_s
    yield Figure("scale", f"{case}: writers", found.plant.writers, "a node", note=loads + lacking)
    yield Figure("scale", f"{case}: uploaders", found.plant.uploaders, "in all")
    yield Figure(
        "scale", f"{case}: store may be down for", found.down_s, f"s with {_gb(plant.staging_bytes)} of staging"
    )
    yield Figure("scale", f"{case}: staging for an hour of that", 3600 * rate / 1e12, "TB")
    yield Figure(
        "scale",
        f"{case}: a node's loss",
        node_s,
        "GPU-s to compute again",
        note=f"{found.outcome.unacknowledged:.0f} outputs accepted and not acknowledged",
    )


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.0f} GB"


def answer() -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        here, to_s3 = measured(root)
        yield from check(here)
        for plant in CLUSTERS:
            yield from about(plant, to_s3)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("benchmarks.scale", description=__doc__)
    parser.add_argument("--costs", type=Path, help="a benchmarks.json with B5 and B1 in it, instead of measuring here")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.5, help="GB/s of each GPU")
    parser.add_argument("--output-mib", type=float, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--cores", type=int, default=16, help="of a node, for the sink")
    parser.add_argument("--staging-gb-s", type=float, default=10, help="what the shared filesystem takes")
    parser.add_argument("--staging-gb", type=float, default=275)
    parser.add_argument("--store-gb-s", type=float, default=10)
    parser.add_argument("--store-puts-s", type=float, default=3500)
    given = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        costs = read(given.costs) if given.costs else measured(root)[1]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    plant = Plant(
        given.gpus,
        1e9 * given.rate,
        MiB * given.output_mib,
        batch=given.batch,
        gpus_per_node=given.gpus_per_node,
        cores=given.cores,
        staging_bytes=1e9 * given.staging_gb,
        staging_bytes_s=1e9 * given.staging_gb_s,
        store_bytes_s=1e9 * given.store_gb_s,
        store_puts_s=given.store_puts_s,
    )
    sys.stdout.write(table(about(plant, costs)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
