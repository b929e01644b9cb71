"""A run whose processes log all they can, and what Ray's state API tells of it afterwards.

Prints one JSON line: where Ray's logs are, what the state API said, and the error of a second run that may not sign in.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util import state

from ray_sink import Sink, UploadOptions
from ray_sink.errors import SinkError


def _log_everything() -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, force=True)


def _told_by_ray() -> str:
    """All that the state API has, in every detail."""
    lists: list[Any] = [state.list_actors, state.list_tasks, state.list_jobs, state.list_workers, state.list_objects]
    here = ray.get_runtime_context().gcs_address
    lists.append(state.list_runtime_envs)
    return "\n".join(repr(list_(address=here, detail=True, limit=10_000)) for list_ in lists)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("tests.faults.secret_job")
    for name in ("--staging", "--dest", "--endpoint", "--credentials", "--wrong-credentials", "--engine"):
        parser.add_argument(name, required=True)
    parser.add_argument("--temp", type=Path, required=True)
    parser.add_argument("--dashboard-port", type=int, required=True)
    arguments = parser.parse_args(argv)
    _log_everything()
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=150 * 2**20,
        include_dashboard=True,
        dashboard_port=arguments.dashboard_port,
        log_to_driver=True,
        runtime_env={"worker_process_setup_hook": _log_everything},
        _temp_dir=str(arguments.temp),
    )

    def upload(credentials: str) -> UploadOptions:
        options = {"endpoint_url": arguments.endpoint, "region": "us-east-1"}
        return UploadOptions(engine=arguments.engine, credentials=credentials, storage_options=options)

    with (
        Sink(arguments.dest, staging=arguments.staging, upload=upload(arguments.credentials)) as sink,
        sink.handle() as handle,
    ):
        handle.write("field", torch.arange(1000.0)).result(60)
        handle.write_batch([f"part/{n}" for n in range(4)], torch.ones(4, 10))
        told = _told_by_ray()
    refused = ""
    try:
        Sink(arguments.dest, staging=arguments.staging, run_id="other", upload=upload(arguments.wrong_credentials))
    except SinkError as error:
        refused = repr([error, error.__notes__ if hasattr(error, "__notes__") else [], error.__cause__])
    told += _told_by_ray()
    print(json.dumps({"told": told, "refused": refused, "outputs": sink.manifest.seal.outputs}), flush=True)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
