"""The job: what is submitted. It takes its places from its arguments, and Ray from the cluster that it runs in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray.data
import torch

from ray_sink import Limits, Sink


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--actors", type=int, required=True)
    parser.add_argument("--dest", required=True)
    parser.add_argument("--staging", required=True)
    parser.add_argument("--log", required=True)
    given = parser.parse_args()
    with Sink(given.dest, staging=given.staging, limits=Limits(takeover_s=10)) as sink:
        sink.run(
            ray.data.range(given.outputs, override_num_blocks=max(1, given.outputs // 4)),
            Model,
            key="field/{id:06d}",
            fn_constructor_args=(given.log,),
            batch_size=2,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
        )


if __name__ == "__main__":
    main()
