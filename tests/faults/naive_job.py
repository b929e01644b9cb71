"""The sink that one would write first: refs pushed to an actor that saves them later. It loses outputs, silently."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy


class Writer:
    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def write(self, refs: list[Any], keys: list[int]) -> None:
        time.sleep(0.5)  # a disk that takes its time
        for key, value in zip(keys, ray.get(refs[0]), strict=True):
            np.save(self._folder / f"{key}.npy", value)

    def idle(self) -> None:
        """Answered after everything that came before."""


class Model:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ref = ray.put([np.full(100_000, float(i)) for i in batch["id"]])
        self._writer.write.remote([ref], list(batch["id"]))
        return {"id": batch["id"]}


def main(folder: str, outputs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as short:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=300 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=short,
        )
        writer: Any = ray.remote(num_cpus=0)(Writer)
        writer = writer.remote(folder)
        ds = ray.data.range(outputs, override_num_blocks=outputs)
        rows = ds.map_batches(Model, fn_constructor_args=(writer,), compute=ActorPoolStrategy(size=1)).take_all()
        ray.get(writer.idle.remote())
        print(json.dumps({"rows": len(rows)}), flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
