"""Every manifest in cluster_configs/kuberay against what the API server and the operator say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import kuberay, manifests
from tests.manifests import BASES, CLUSTERS, FILES, KUBERAY, OVERLAYS, PROJECT, Document, ray

# The schemas belong to KubeRay and are looked for beside the project; this names another folder.
CRDS = Path(os.environ.get("KUBERAY_CRDS", PROJECT.parent / "shared" / "kuberay-crds"))
MONITORING = ("PodMonitor", "PrometheusRule")

Change = Callable[[Document], object]


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """The operator's, by kind."""
    files = {kind: CRDS / f"ray.io_{kind.lower()}s.yaml" for kind in ("RayJob", "RayCluster")}
    if not all(path.is_file() for path in files.values()) and "KUBERAY_CRDS" not in os.environ:
        pytest.skip(f"no CRDs in {CRDS}; KUBERAY_CRDS names the folder with KubeRay's")
    return {kind: kuberay.schema_of(path) for kind, path in files.items()}


@pytest.fixture
def job() -> Document:
    (found,) = manifests.of_kind(manifests.load("full/rayjob.yaml"), "RayJob")
    return found


def pod(resource: Document, group: str) -> Document:
    spec: Document = kuberay.groups(resource)[group]["template"]["spec"]
    return spec


def in_place(path: Path) -> str:
    return str(path.relative_to(KUBERAY))


@pytest.mark.parametrize("name", [*map(in_place, FILES), *OVERLAYS, *BASES, "monitoring"])
def test_the_api_server_takes_it(name: str, schemas: dict[str, dict[str, Any]]) -> None:
    built = name == "monitoring" or name in BASES
    documents = manifests.built(KUBERAY / name) if built else manifests.load(name)
    assert documents
    for document in documents:
        kind = document["kind"]
        if kind in schemas:
            assert kuberay.schema_problems(document, schemas[kind]) == [], kind
        elif kind not in MONITORING:  # test_monitoring.py has those
            assert kuberay.core_problems(document) == [], kind
    for found in manifests.pods(documents):
        assert kuberay.core_problems({"apiVersion": "v1", "kind": "Pod", "spec": found.spec}) == [], found.name


@pytest.mark.parametrize("name", BASES)
def test_a_kustomization_of_ours_changes_nothing_that_it_gathers(name: str) -> None:
    def by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
        return {(document["kind"], document["metadata"]["name"]): document for document in documents}

    assert by_name(manifests.built(KUBERAY / name)) == by_name(manifests.collected(KUBERAY / name))


@pytest.mark.parametrize(
    "misspell",
    [
        lambda job: job.update(specs={}),
        lambda job: job["metadata"].update(lables={}),
        lambda job: job["spec"].update(ttlSecondAfterFinished=1),
        lambda job: job["spec"]["submitterPodTemplate"]["spec"].update(restartPolice="Never"),
        lambda job: job["spec"]["rayClusterSpec"].update(workerGroups=[]),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda job: kuberay.groups(job)["gpu"].update(rayStartParam={}),
        lambda job: pod(job, "writers").update(terminationGracePeriod=1),
        lambda job: pod(job, "head")["containers"][0].update(volumeMount=[]),
        lambda job: pod(job, "head")["containers"][0]["securityContext"].update(privilegeEscalation=False),
        lambda job: pod(job, "head")["volumes"][0]["persistentVolumeClaim"].update(claim="x"),
        lambda job: pod(job, "gpu")["tolerations"][0].update(keys="x"),
        lambda job: kuberay.groups(job)["gpu"].pop("template"),
        lambda job: kuberay.groups(job)["head"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: job["spec"].update(backoffLimit="2"),
    ],
)
def test_a_misspelled_or_mistyped_field_is_caught(
    job: Document, schemas: dict[str, dict[str, Any]], misspell: Change
) -> None:
    misspell(job)
    assert len(kuberay.schema_problems(job, schemas["RayJob"])) == 1


def test_a_misspelled_field_of_a_core_kind_is_caught() -> None:
    documents = manifests.load("full")
    claim, policy = (manifests.of_kind(documents, kind)[0] for kind in ("PersistentVolumeClaim", "NetworkPolicy"))
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    policy["spec"]["egres"] = policy["spec"].pop("egress")
    assert "accessMode" in " ".join(kuberay.core_problems(claim))
    assert "egres" in " ".join(kuberay.core_problems(policy))


@pytest.mark.parametrize("name", [*CLUSTERS, "cluster/job.yaml"])
def test_the_operator_takes_it(name: str) -> None:
    assert kuberay.operator_problems(ray(manifests.load(name))) == []


def sidecar(job: Document, **more: object) -> Document:
    del job["spec"]["submitterPodTemplate"]
    job["spec"].update(submissionMode="SidecarMode", **more)
    return job


def scales_itself(job: Document) -> Document:
    job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"})
    return job


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda job: job["metadata"].update(name="a" * 48), "at most 47"),
        (lambda job: job["metadata"].update(name="1st"), "DNS-1035"),
        (lambda job: job["spec"].update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished"),
        (
            lambda job: job["spec"].update(shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0, suspend=True),
            "suspend",
        ),
        (lambda job: job["spec"].update(deletionStrategy={"deletionRules": []}), "deletionRules"),
        (lambda job: job["spec"].update(submissionMode="K8sJob"), "none of"),
        (lambda job: job["spec"].update(submissionMode="InteractiveMode"), "backoffLimit"),
        (lambda job: job["spec"].update(clusterSelector={"ray.io/cluster": "x"}), "backoffLimit"),
        (lambda job: job["spec"].update(clusterSelector={"cluster": "x"}, backoffLimit=0), "names no ray.io/cluster"),
        (lambda job: job["spec"].update(activeDeadlineSeconds=0), "positive"),
        (lambda job: sidecar(job, submitterConfig={}), "submitterConfig"),
        (lambda job: job["spec"].update(submissionMode="SidecarMode"), "submitterPodTemplate"),
        (lambda job: pod(sidecar(job), "head").update(restartPolicy="Always"), "head: restartPolicy"),
        (lambda job: pod(scales_itself(job), "gpu").update(restartPolicy="OnFailure"), "gpu: restartPolicy"),
        (lambda job: kuberay.groups(scales_itself(job))["gpu"].update(suspend=True), "cannot be suspended"),
        (lambda job: job["spec"].pop("rayClusterSpec"), "one of"),
        (lambda job: job["spec"].update(runtimeEnvYAML="working_dir"), "runtimeEnvYAML"),
        (
            lambda job: kuberay.groups(job)["gpu"].update(resources={"x": "1"}, rayStartParams={"num-cpus": "4"}),
            "not in both",
        ),
        (lambda job: kuberay.groups(job)["gpu"]["rayStartParams"].update(labels="a=b"), "labels"),
        (lambda job: kuberay.groups(job)["gpu"].update(labels={"a": "b c"}), "no label"),
        (lambda job: pod(job, "gpu").update(containers=[]), "container"),
        (lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"), "2.52"),
        (
            lambda job: pod(job, "head")["containers"][0]["env"].append({"name": "REDIS_PASSWORD", "value": "x"}),
            "gcsFaultToleranceOptions",
        ),
    ],
)
def test_each_rule_of_the_operator_is_checked(job: Document, change: Change, said: str) -> None:
    change(job)
    (problem,) = kuberay.operator_problems(job)
    assert said in problem


def test_a_clusters_name_may_be_a_little_longer() -> None:
    cluster = ray(manifests.load("cluster/raycluster.yaml"))
    cluster["metadata"]["name"] = "a" * 53
    assert kuberay.operator_problems(cluster) == []
    cluster["metadata"]["name"] = "a" * 54
    assert len(kuberay.operator_problems(cluster)) == 1
