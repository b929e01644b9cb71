"""The entrypoints of the manifests, run for real in pods that have the manifests' numbers."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

import pytest

import ray_sink
from tests import kuberay, manifests
from tests.manifests import PROJECT, Document, Pod
from tests.pods import Cluster, finished, ray_job_submit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
OUTPUTS = 8


def smaller(entrypoint: str) -> str:
    """The same for a machine with two cores, a folder for a bucket, and the project where it is."""
    words = entrypoint.split()
    for option, value in (("--outputs", str(OUTPUTS)), ("--actors", "1")):
        if option in words:
            words[words.index(option) + 1] = value
    if "quickstart/main.py" in entrypoint:
        words += ["--tiles", str(OUTPUTS)]
    return " ".join(words).replace("/home/ray/ray_sink", str(PROJECT)).replace("s3://change-me", "/mnt/bucket")


@pytest.mark.parametrize(("name", "sealed"), [("full", "runs/1"), ("rayjob.yaml", f"quickstart/{OUTPUTS}-tiles/sink")])
def test_it_runs_to_its_end_and_every_pod_leaves_in_time(name: str, sealed: str) -> None:
    documents = manifests.load(name)
    (job,) = manifests.of_kind(documents, "RayJob")
    accounts = manifests.of_kind(documents, "ServiceAccount")
    identities = [one["metadata"]["name"] for one in accounts if one["metadata"].get("annotations")]
    nodes = manifests.ray_pods(job)
    with tempfile.TemporaryDirectory(prefix="pods-", dir="/var/tmp") as place:
        bucket = Path(place) / "bucket"
        bucket.mkdir()
        (Path(place) / "run").mkdir()
        spec: Document = kuberay.cluster_spec(job) or {}
        cluster = Cluster(
            Path(place) / "run",
            [*nodes, submitter(documents, nodes[0])],
            spec,
            bucket=bucket,
            identities=identities,
            submit=ray_job_submit(smaller(job["spec"]["entrypoint"])),
        )
        with closing(cluster):
            cluster.start(300)
            assert finished(cluster, "submitter", 1200) == 0, cluster.log("submitter")[-5000:]
            for pod in nodes:
                assert "instead of /dev/shm" not in cluster.log(pod.name)
            for pod in reversed(nodes):
                cluster.terminate(pod.name)
                finished(cluster, pod.name, pod.spec["terminationGracePeriodSeconds"])
            assert list((cluster.folder / "claim").rglob("journal")), "staging was not on the claim"
        assert len(ray_sink.open(str(bucket / sealed))) == OUTPUTS


def submitter(documents: list[Document], head: Pod) -> Pod:
    """Where the manifest has none, the operator's own: the head's image, and nothing else."""
    given = [pod for pod in manifests.pods(documents) if pod.name == "submitter"]
    temp = {"name": "temp", "emptyDir": {"sizeLimit": "1Gi"}}
    container = {"name": "x", "volumeMounts": [{"name": "temp", "mountPath": "/tmp"}]}
    return (
        given[0]
        if given
        else Pod("submitter", {}, {"restartPolicy": "Never", "containers": [container], "volumes": [temp]}, {})
    )
