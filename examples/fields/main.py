"""Rollouts of a neural operator from real photographs: one row in, many large fields out, each a file of its own.

    python main.py                                            4 rollouts of 6 steps, 2 MB each, below runs/fields
    python main.py --inits 4000 --steps 40 --size 1024 --actors 64 --gpus 1 --dest s3://bucket/fields --staging /mnt/shared/fields

Run it again: rollouts that are there are left out, one that was interrupted is computed again as a whole.
"""  # noqa: E501

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch

import ray_sink
from ray_sink import SaveFormat, Sink

PHOTOGRAPHS = ("astronaut", "camera", "coffee", "moon", "hubble_deep_field", "rocket", "retina", "cat")
"""Inside scikit-image's wheel: nothing is downloaded."""
CHANNELS, MODES = 8, 24
SEED = 7


class SpectralLayer(torch.nn.Module):
    """A layer of a Fourier neural operator (arXiv:2010.08895): low modes are mixed, the rest goes through a 1x1 map."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(2, CHANNELS, CHANNELS, MODES, MODES, dtype=torch.cfloat) / CHANNELS
        self.modes = torch.nn.Parameter(weight)
        self.local = torch.nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """`u` is (rows, channels, y, x)."""
        there = torch.fft.rfft2(u, norm="ortho")
        mixed = torch.zeros_like(there)
        for half, rows in enumerate((slice(0, MODES), slice(-MODES, None))):
            low = there[:, :, rows, :MODES]
            mixed[:, :, rows, :MODES] = torch.einsum("bixy,ioxy->boxy", low, self.modes[half])
        return torch.tanh(torch.fft.irfft2(mixed, s=u.shape[-2:], norm="ortho") + self.local(u))


class Operator:
    """The model: a generator that gives the whole batch's next step at a time. Its weights are drawn from a seed."""

    def __init__(self, steps: int, size: int) -> None:
        torch.manual_seed(SEED)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.lift = torch.nn.Conv2d(3, CHANNELS, 1).to(self.device)
        self.layer = SpectralLayer().to(self.device)
        self.steps, self.size = steps, size

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        images = torch.stack([self._image(*row) for row in zip(batch["photo"], batch["member"], strict=True)])
        u = self.lift(images.to(self.device))
        for step in range(self.steps):
            u = u + 0.1 * self.layer(u)
            yield {"init_id": batch["init_id"], "step": [step] * len(u), "u": u, "mean": u.mean((1, 2, 3))}

    def _image(self, name: str, member: int) -> torch.Tensor:
        """A photograph at the run's size, a little different for each member of the ensemble."""
        from skimage import data

        pixels = np.atleast_3d(getattr(data, name)())[:, :, :3].astype(np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1).expand(3, -1, -1)
        scaled = torch.nn.functional.interpolate(image[None], (self.size, self.size), mode="area")[0]
        noise = torch.Generator().manual_seed(int(member))
        return scaled + 0.01 * torch.randn(scaled.shape, generator=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inits", type=int, default=4, help="rollouts (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="steps, and files, of each (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="points along each side of a field (%(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="actors with a model each (%(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor (%(default)s)")
    parser.add_argument("--dest", default="runs/fields", help="any fsspec URL or folder (%(default)s)")
    parser.add_argument("--staging", type=Path, default=Path("runs/fields-staging"), help="a folder that all nodes see")
    given = parser.parse_args()

    photos = [PHOTOGRAPHS[number % len(PHOTOGRAPHS)] for number in range(given.inits)]
    members = [number // len(PHOTOGRAPHS) for number in range(given.inits)]
    inits = [
        {"init_id": f"{photo}-{member:04d}", "photo": photo, "member": member}
        for photo, member in zip(photos, members, strict=True)
    ]
    ds = ray.data.from_items(inits)
    given.staging.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Sink(
        given.dest,
        staging=given.staging.resolve(),
        fingerprint=f"seed {SEED}, {given.steps} steps, {given.size}",
        save_format=SaveFormat.SAFETENSORS,
    ) as sink:
        print(f"{sink.remaining(ds, source='init_id').count()} of {given.inits} rollouts are to be computed")
        receipts = sink.run(
            ds,
            Operator,
            key="{init_id}/{step:03d}",
            columns="u",
            source="init_id",
            fn_constructor_args=(given.steps, given.size),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
            num_gpus=given.gpus,
        )
        means = {row["key"]: row["mean"] for row in receipts.take_all()}

    manifest = ray_sink.open(given.dest)
    took = time.monotonic() - began
    print(
        f"{len(means)} fields computed in {took:.1f} s; {len(manifest)} are there, {manifest.seal.total_bytes:,} bytes"
    )
    key = f"{inits[-1]['init_id']}/{given.steps - 1:03d}"
    field = manifest.load(key)
    assert isinstance(field, torch.Tensor)
    print(f"{key}: {tuple(field.shape)} {field.dtype}, mean {field.mean().item():.4f}")
    assert len(manifest) == given.inits * given.steps


if __name__ == "__main__":
    main()
