"""A job submitted to a Ray cluster, watched, its driver killed half way, and submitted again.

    python main.py                                            a cluster of its own on this machine
    python main.py --address http://head:8265 --outputs 100000 --actors 8 --dest s3://bucket/job --staging /mnt/shared/job

`job.py` is what is submitted: any Ray Data script with a Sink in it.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

import ray_sink

HERE = Path(__file__).parent


def submit(client: JobSubmissionClient, given: argparse.Namespace, log: Path) -> str:
    """The same entrypoint every time: that is all that a resume needs."""
    command: list[object] = [sys.executable if given.own else "python", "job.py"]
    command += ["--outputs", given.outputs, "--actors", given.actors, "--dest", given.dest]
    command += ["--staging", given.staging, "--takeover-s", 10, "--log", log]
    entrypoint = " ".join(shlex.quote(str(part)) for part in command)
    for left in reversed(range(60)):
        try:
            job_id: str = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(HERE)})
            break
        except RuntimeError as error:
            # a cluster that has only just started: its node's agent comes up after the dashboard
            if not left or "No available agent" not in str(error):
                raise
            time.sleep(1)
    print(f"submitted {job_id}: {entrypoint}")
    return job_id


def killed_half_way(client: JobSubmissionClient, job_id: str, given: argparse.Namespace, log: Path) -> int:
    """End the job's driver when half of the rows are computed; returns how many that are."""
    while _computed(log) < given.outputs // 2:
        _still_running(client, job_id)
        time.sleep(0.1)
    driver = client.get_job_info(job_id).driver_info
    if given.own and driver is not None:
        os.kill(int(driver.pid), signal.SIGKILL)
    else:
        client.stop_job(job_id)  # on another machine: a SIGTERM, and a SIGKILL a little later
    _ended(client, job_id)
    return _computed(log)


def _ended(client: JobSubmissionClient, job_id: str) -> JobStatus:
    while not (status := client.get_job_status(job_id)).is_terminal():
        time.sleep(0.5)
    return status


def _still_running(client: JobSubmissionClient, job_id: str) -> None:
    status = client.get_job_status(job_id)
    if status.is_terminal():
        raise SystemExit(f"{job_id} ended by itself, {status}:\n{client.get_job_logs(job_id)}")


def _computed(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of the cluster's dashboard; if left out, a cluster of its own is started")
    parser.add_argument("--outputs", type=int, default=40, help="outputs, 256 kB each (%(default)s)")
    parser.add_argument("--actors", type=int, default=1, help="actors with a model each (%(default)s)")
    parser.add_argument("--dest", default="runs/ray_job", help="any fsspec URL or folder (%(default)s)")
    parser.add_argument(
        "--staging", type=Path, default=Path("runs/ray_job-staging"), help="a folder that all nodes see"
    )
    given = parser.parse_args()
    given.staging = given.staging.resolve()
    given.staging.mkdir(parents=True, exist_ok=True)
    if "://" not in given.dest:
        given.dest = str(Path(given.dest).resolve())  # the job runs in a folder of its own
    log = given.staging.with_name(f"{given.staging.name}.log")  # the staging folder is the sink's alone
    log.unlink(missing_ok=True)

    given.own = not given.address
    if given.own:
        print("Starting a Ray cluster on this machine …")
        # not ray.init(): its agent, which takes jobs, wants one fixed port, and another Ray on this machine has it
        cluster = Cluster()
        head = cluster.add_node(include_dashboard=True, dashboard_port=None, dashboard_agent_listen_port=0)
        given.address = f"http://{head.webui_url}"
    client = JobSubmissionClient(given.address)

    before = killed_half_way(client, submit(client, given, log), given, log)
    print(f"its driver was killed after {before} of {given.outputs} rows were computed; the cluster lives on")
    second = submit(client, given, log)
    print(f"watch it:  ray-sink status --staging {given.staging}")
    status = _ended(client, second)
    if status is not JobStatus.SUCCEEDED:
        raise SystemExit(f"{second} {status}:\n{client.get_job_logs(second)}")
    if given.own:
        cluster.shutdown()

    manifest = ray_sink.open(given.dest)
    again = _computed(log) - given.outputs
    print(f"{len(manifest)} outputs are there, each once; {again} rows, on their way when it died, were computed again")
    print(f"rows in / out / skipped: {manifest.seal.rows}")
    assert len(set(manifest)) == len(manifest) == given.outputs


if __name__ == "__main__":
    main()
