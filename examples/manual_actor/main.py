"""Own actors without Ray Data: simulations that live long and write snapshots through a handle each.

    python main.py                                            3 simulations in 2 actors, below runs/manual_actor
    python main.py --cases 5000 --frames 100 --size 2048 --actors 128 --dest s3://bucket/sims --staging /mnt/shared/sims

Run it again: cases whose frames are all there are not simulated again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import ray.data
import torch
from ray.util import ActorPool

import ray_sink
from ray_sink import Sink, SinkHandle

KEY = "case_{case:05d}/{frame:04d}"


class Simulation:
    """Gray-Scott: two substances that react and diffuse (Pearson, 1993, doi:10.1126/science.261.5118.189)."""

    def __init__(self, handle: SinkHandle, size: int, frames: int, steps: int) -> None:
        self.handle = handle
        self.size, self.frames, self.steps = size, frames, steps
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def simulate(self, case: int) -> str:
        """Run one case; returns where its last frame is, once that is safe."""
        feed, kill = 0.030 + 0.002 * (case % 8), 0.062
        u = torch.ones(self.size, self.size, device=self.device)
        v = torch.zeros_like(u)
        middle = slice(self.size // 2 - 8, self.size // 2 + 8)
        u[middle, middle], v[middle, middle] = 0.5, 0.25
        for frame in range(self.frames):
            for _ in range(self.steps):
                reaction = u * v * v
                u += 0.16 * _laplacian(u) - reaction + feed * (1 - u)
                v += 0.08 * _laplacian(v) + reaction - (feed + kill) * v
            # returns at once; u and v may be overwritten, and the next frame is computed while this one is written
            ticket = self.handle.write(KEY.format(case=case, frame=frame), {"u": u, "v": v})
        return str(ticket.result().files[0].uri)

    def finish(self) -> None:
        """Wait for what is on its way, and say goodbye: without it the run would not be sealed."""
        self.handle.close()


def _laplacian(field: torch.Tensor) -> torch.Tensor:
    return sum((field.roll(shift, axis) for axis in (0, 1) for shift in (1, -1)), -4 * field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3, help="simulations (%(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="snapshots of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="time steps between two of them (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="points along each side (%(default)s)")
    parser.add_argument("--actors", type=int, default=2, help="actors (%(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor (%(default)s)")
    parser.add_argument("--dest", default="runs/manual_actor", help="any fsspec URL or folder (%(default)s)")
    parser.add_argument(
        "--staging", type=Path, default=Path("runs/manual_actor-staging"), help="a folder all nodes see"
    )
    given = parser.parse_args()

    given.staging.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Sink(given.dest, staging=given.staging.resolve(), fingerprint=f"{given.size} x {given.steps}") as sink:
        frames = [{"case": case, "frame": frame} for case in range(given.cases) for frame in range(given.frames)]
        left = sink.remaining(ray.data.from_items(frames), key=KEY).take_all()
        todo = sorted({row["case"] for row in left})  # cases of which any frame is missing
        remote: Any = ray.remote(num_cpus=0.5, num_gpus=given.gpus)(Simulation)
        shape = (given.size, given.frames, given.steps)
        actors = [remote.remote(sink.handle(), *shape) for _ in range(min(given.actors, len(todo)))]
        for place in ActorPool(actors).map_unordered(lambda actor, case: actor.simulate.remote(case), todo):
            print(f"safe: {place}")
        ray.get([actor.finish.remote() for actor in actors])

    manifest = ray_sink.open(given.dest)
    took = time.monotonic() - began
    print(f"{len(todo)} of {given.cases} cases simulated in {took:.1f} s; {len(manifest)} frames are there")
    frame: Any = manifest.load(KEY.format(case=given.cases - 1, frame=given.frames - 1))
    print(f"the last one: v between {frame['v'].min():.3f} and {frame['v'].max():.3f}, {tuple(frame['v'].shape)}")


if __name__ == "__main__":
    main()
