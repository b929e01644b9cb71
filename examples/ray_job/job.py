"""The job: what is submitted. It takes its places from its arguments, and Ray from the cluster that it runs in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray.data
import torch

from ray_sink import Limits, NodeLocal, Sink, UploadOptions, WriterOptions


class Model:
    """Takes a while for each row; with a log, leaves a line in it for each: that is what the end counts."""

    def __init__(self, log: str | None) -> None:
        self.log = Path(log) if log else None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        fields = []
        for seed in batch["id"].tolist():
            noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)).to(self.device)
            fields.append(torch.linalg.matrix_exp(noise / 64))
            if self.log:
                with self.log.open("a") as file:
                    file.write(f"{seed}\n")
        return {"id": batch["id"], "field": torch.stack(fields)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--actors", type=int, required=True)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor (%(default)s)")
    parser.add_argument("--dest", required=True)
    parser.add_argument("--staging", required=True)
    parser.add_argument("--node-local", action="store_true", help="--staging is on each writer's own disk")
    parser.add_argument("--temp", help="folder on a fast disk of each writer's node (the system's)")
    parser.add_argument("--label", default="", help="NAME=VALUE of the nodes that write and upload (any)")
    parser.add_argument(
        "--takeover-s", type=float, default=60, help="until a dead driver's run is taken over (%(default)s)"
    )
    parser.add_argument("--log", help="file that gets a line for each row that is computed")
    given = parser.parse_args()
    if not given.node_local:
        Path(given.staging).mkdir(parents=True, exist_ok=True)
    there = dict([given.label.split("=", 1)]) if given.label else {}
    with Sink(
        given.dest,
        staging=NodeLocal(given.staging) if given.node_local else given.staging,
        ack="uploaded" if given.node_local else "staged",
        writers=WriterOptions(temp_dir=given.temp, label_selector=there),
        upload=UploadOptions(label_selector=there),
        limits=Limits(takeover_s=given.takeover_s),
    ) as sink:
        sink.run(
            ray.data.range(given.outputs, override_num_blocks=max(1, given.outputs // 4)),
            Model,
            key="field/{id:06d}",
            fn_constructor_args=(given.log,),
            batch_size=2,
            num_gpus=given.gpus,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
        )


if __name__ == "__main__":
    main()
