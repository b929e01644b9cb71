"""What the manifests promise: rights, ways, sizes and times, and that what belongs together fits."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ray_sink.config import Limits, UploadOptions, WriterOptions
from tests import kuberay, manifests
from tests.manifests import CLUSTERS, GUARDED, KUBERAY, NODE_LOCAL, OVERLAYS, PROJECT, Document, Pod, ray

IMAGE_ROOT = Path("/home/ray/ray_sink")
GiB = 2**30
STORE = "203.0.113.7"
METADATA = "169.254.169.254"

Change = Callable[[Document], object]


def all_pods(name: str) -> list[Pod]:
    """Every pod of it; with the cluster that stays, those of the jobs on it."""
    documents = manifests.load(name)
    return manifests.pods(documents + (manifests.load("cluster/job.yaml") if name == "cluster" else []))


@pytest.mark.parametrize("name", GUARDED)
def test_a_namespace_that_enforces_restricted_takes_every_pod(name: str) -> None:
    documents = manifests.load(name)
    (namespace,) = manifests.of_kind(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    options = (kuberay.cluster_spec(ray(documents)) or {}).get("autoscalerOptions")
    autoscaler = [{"name": "autoscaler", **options}] if options else []
    for found in all_pods(name):
        beside = autoscaler if found.name == "head" else []
        assert list(manifests.restricted_problems(found.spec, beside)) == [], found.name
        for container in (found.container, *beside):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounted >= ({"/data"} if found.name == "redis" else {"/tmp"})
            assert found.name == "redis" or {"name": "HOME", "value": "/tmp"} in container["env"]


@pytest.mark.parametrize(
    ("loosen", "said"),
    [
        (lambda spec: spec.update(hostNetwork=True), "hostNetwork"),
        (lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume hostPath"),
        (lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "PrivilegeEscalation"),
        (lambda spec: spec["containers"][0]["securityContext"].update(capabilities={}), "capabilities"),
        (lambda spec: spec["securityContext"].pop("runAsNonRoot"), "runAsNonRoot"),
        (lambda spec: spec["securityContext"].update(runAsUser=0), "runAsUser"),
        (lambda spec: spec["securityContext"].pop("seccompProfile"), "seccompProfile"),
        (lambda spec: spec["containers"][0].update(ports=[{"containerPort": 1, "hostPort": 1}]), "hostPort"),
    ],
)
def test_what_restricted_forbids_is_seen(loosen: Change, said: str) -> None:
    (spec,) = (pod.spec for pod in all_pods("full") if pod.name == "gpu")
    loosen(spec)
    (problem,) = manifests.restricted_problems(spec)
    assert said in problem


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_pod_drains_before_it_is_killed_and_has_time_for_what_the_sink_holds(name: str) -> None:
    for found in manifests.ray_pods(ray(manifests.load(name))):
        drain_s = float(found.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert found.spec["terminationGracePeriodSeconds"] >= drain_s + 20
        assert drain_s >= 2 * Limits().drain_s
        assert "lifecycle" not in found.container


@pytest.mark.parametrize("name", CLUSTERS)
def test_memory_and_disks_hold_what_is_put_there(name: str) -> None:
    for found in manifests.ray_pods(ray(manifests.load(name))):
        limits, requests = (found.container["resources"][kind] for kind in ("limits", "requests"))
        store = int(found.group["rayStartParams"]["object-store-memory"])
        shared = found.mount("/dev/shm")
        # left out, the operator makes one as large as the memory limit
        room = manifests.n_bytes(shared["emptyDir"]["sizeLimit"] if shared else limits["memory"])
        assert shared is None or shared["emptyDir"]["medium"] == "Memory"
        assert room >= 1.05 * store
        assert manifests.n_bytes(limits["memory"]) >= store + 6 * GiB + UploadOptions().buffer_bytes
        disks = [v["emptyDir"] for v in found.spec["volumes"] if "emptyDir" in v and v is not shared]
        assert manifests.n_bytes(limits["ephemeral-storage"]) >= sum(manifests.n_bytes(d["sizeLimit"]) for d in disks)
        for kind in ("memory", "ephemeral-storage"):
            assert limits[kind] == requests[kind], "what is promised is what may be used"


@pytest.mark.parametrize("name", CLUSTERS)
def test_writers_have_a_disk_of_their_own_with_room_for_their_temps(name: str) -> None:
    documents = manifests.load(name)
    job = ray(manifests.load("cluster/job.yaml") if name == "cluster" else documents)
    temp = manifests.arguments(job).get("--temp", "/tmp")
    for found in manifests.ray_pods(ray(documents)):
        if found.name != "head" and (found.group.get("labels") or "--label" not in manifests.arguments(job)):
            volume = found.mount(temp)
            assert volume is not None
            room = manifests.n_bytes(volume["emptyDir"]["sizeLimit"])
            assert room >= 2 * WriterOptions().per_node * Limits().temp_bytes


def test_node_local_staging_is_a_disk_of_the_writers_own_and_nothing_is_shared() -> None:
    documents = manifests.load(NODE_LOCAL)
    job = ray(documents)
    given = manifests.arguments(job)
    assert "--node-local" in given
    assert set(given) <= options(PROJECT / "examples/ray_job/job.py")
    assert manifests.of_kind(documents, "PersistentVolumeClaim") == []
    for found in manifests.ray_pods(job):
        assert [volume for volume in found.spec["volumes"] if "persistentVolumeClaim" in volume] == []
        assert {m["name"] for m in found.container["volumeMounts"]} == {v["name"] for v in found.spec["volumes"]}
        volume = found.mount(given["--staging"])
        if found.name != "writers":
            assert volume is None
        else:
            assert volume is not None
            room = manifests.n_bytes(volume["emptyDir"]["sizeLimit"])
            assert room >= 2 * WriterOptions().per_node * Limits().temp_bytes


@pytest.mark.parametrize("name", [name for name in CLUSTERS if name != NODE_LOCAL])
def test_staging_is_a_claim_that_all_nodes_mount_and_large_enough(name: str) -> None:
    documents = manifests.load(name)
    staging = manifests.arguments(ray(manifests.load("cluster/job.yaml") if name == "cluster" else documents))[
        "--staging"
    ]
    (claim,) = manifests.of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert manifests.n_bytes(claim["spec"]["resources"]["requests"]["storage"]) > Limits().staging_bytes
    for found in manifests.ray_pods(ray(documents)):
        volume = found.mount(staging)
        assert volume is not None
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        security = found.spec["securityContext"]
        assert (security["runAsUser"], security["fsGroup"]) == (1000, 100), "what the image runs as"
        assert security["fsGroupChangePolicy"] == "OnRootMismatch", "no chown of all that is staged at each start"


@pytest.mark.parametrize("name", ["rayjob.yaml", "full", *OVERLAYS])
def test_a_retry_is_the_same_run_and_what_hangs_or_ends_frees_its_nodes(name: str) -> None:
    spec = ray(manifests.load(name))["spec"]
    assert spec["backoffLimit"] == 2
    assert not re.search(r"[$`]", spec["entrypoint"]), "nothing that differs from try to try"
    assert {"--dest", "--staging"} <= manifests.arguments({"spec": spec}).keys()
    assert spec["shutdownAfterJobFinishes"] is True
    assert 300 <= spec["ttlSecondsAfterFinished"] <= 600
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


@pytest.mark.parametrize("name", ["rayjob.yaml", "full", "cluster/job.yaml"])
def test_an_entrypoint_is_a_file_of_the_project_and_knows_its_options(name: str) -> None:
    resource = ray(manifests.load(name))
    python, script, *_ = shlex.split(resource["spec"]["entrypoint"])
    assert python == "python"
    assert set(manifests.arguments(resource)) <= options(PROJECT / Path(script).relative_to(IMAGE_ROOT))


@cache
def options(script: Path) -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True, timeout=300, cwd=PROJECT
    )
    return frozenset(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_runs_on_the_head_and_one_group_has_gpus_and_their_taint(name: str) -> None:
    found = {pod.name: pod for pod in manifests.ray_pods(ray(manifests.load(name)))}
    assert found["head"].group["rayStartParams"]["num-cpus"] == "0"
    assert [n for n, pod in found.items() if "nvidia.com/gpu" in pod.container["resources"]["limits"]] == ["gpu"]
    assert [n for n, pod in found.items() if "tolerations" in pod.spec] == ["gpu"]


@pytest.mark.parametrize("name", ["full", "cluster"])
def test_writers_and_uploaders_are_asked_for_by_the_label_that_one_group_has(name: str) -> None:
    job = ray(manifests.load("cluster/job.yaml" if name == "cluster" else name))
    label = dict([manifests.arguments(job)["--label"].split("=")])
    having = [n for n, group in kuberay.groups(ray(manifests.load(name))).items() if group.get("labels") == label]
    assert having == ["writers"]


def test_images_cluster_and_pins_have_one_ray() -> None:
    dockerfile = (KUBERAY / "Dockerfile").read_text()
    images = set()
    for name in (*CLUSTERS, "cluster/job.yaml"):
        documents = manifests.load(name)
        images |= {pod.container["image"] for pod in manifests.pods(documents) if pod.name != "redis"}
        cluster = kuberay.cluster_spec(ray(documents))
        version = cluster["rayVersion"] if cluster else "2.60.0"
        assert f"FROM rayproject/ray:{version}-" in dockerfile
        assert f'"ray=={version}"' in dockerfile
        assert f"ray=={version}\n" in (PROJECT / "constraints.txt").read_text()
    (image,) = images
    assert image.endswith(f"/ray-sink:{_own_version()}")
    assert f" {IMAGE_ROOT}\n" in dockerfile


def _own_version() -> str:
    (found,) = re.findall(r'^version = "(.+)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("name", GUARDED)
def test_only_the_uploaders_have_an_identity_or_a_secret_of_the_stores(name: str) -> None:
    documents = manifests.load(name)
    accounts = {document["metadata"]["name"]: document for document in manifests.of_kind(documents, "ServiceAccount")}
    for found in all_pods(name):
        account = accounts[found.spec["serviceAccountName"]]
        identity = bool(account["metadata"].get("annotations"))
        secret = "envFrom" in found.container
        assert (identity or secret) == (found.name == "writers"), found.name
        # a token of the API server's is the autoscaler's alone
        assert account.get("automountServiceAccountToken", True) == (found.name == "head" and name == "cluster")


@pytest.mark.parametrize("name", GUARDED)
def test_only_the_uploaders_reach_the_store_and_all_reach_each_other(name: str) -> None:
    policies = manifests.of_kind(manifests.load(name), "NetworkPolicy")
    store = "192.0.2.9" if name == "overlays/on-premises" else STORE
    found = {pod.name: pod for pod in all_pods(name)}
    redis = found.pop("redis", None)
    for pod_name, one in found.items():
        assert manifests.may_send(policies, one, store, 443) == (pod_name == "writers"), pod_name
        assert not manifests.may_send(policies, one, store, 80)
        # a node's own identity is to be had there, except on GKE, where it is the pod's
        asks = pod_name == "writers" and name == "overlays/gke-filestore"
        assert manifests.may_send(policies, one, METADATA, 80) == asks
        assert not manifests.may_send(policies, one, METADATA, 443)
        assert manifests.may_send(policies, one, DNS, 53, namespace="kube-system")
        for other in found.values():
            assert manifests.may_send(policies, one, other, 6379)
            assert manifests.may_receive(policies, one, other, 6379)
            assert not manifests.may_receive(policies, one, other, 8265, namespace="elsewhere")
        assert manifests.may_receive(policies, one, OPERATOR, 8265, namespace="kuberay-system")
        assert not manifests.may_receive(policies, one, OPERATOR, 10001, namespace="kuberay-system")
        assert manifests.may_receive(policies, one, PROMETHEUS, 8080, namespace="monitoring")
        if redis is not None:
            assert manifests.may_send(policies, one, redis, 6379) == (pod_name == "head")
            assert manifests.may_receive(policies, redis, one, 6379) == (pod_name == "head")
    if redis is not None:
        assert not manifests.may_send(policies, redis, STORE, 443)
        cleanup = Pod("cleanup", {**found["head"].labels, "ray.io/node-type": "redis-cleanup"}, {}, {})
        assert manifests.may_send(policies, cleanup, redis, 6379)
        assert manifests.may_receive(policies, redis, cleanup, 6379)
        assert manifests.may_send(policies, found["head"], "192.0.2.1", 443), "the API server, for the autoscaler"


DNS = Pod("dns", {"k8s-app": "kube-dns"}, {}, {})
OPERATOR = Pod("operator", {"app.kubernetes.io/component": "kuberay-operator"}, {}, {})
PROMETHEUS = Pod("prometheus", {"app.kubernetes.io/name": "prometheus"}, {}, {})


def test_what_refers_to_something_finds_it() -> None:
    documents = manifests.load("cluster")
    cluster, redis = ray(documents), manifests.of_kind(documents, "StatefulSet")[0]
    (service,) = manifests.of_kind(documents, "Service")
    options = cluster["spec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]
    wanted = redis["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == wanted
    job = ray(manifests.load("cluster/job.yaml"))
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert "backoffLimit" not in job["spec"]


def test_a_run_whose_cluster_is_gone_is_recovered_as_its_uploaders_were_run() -> None:
    (recover,) = manifests.pods(manifests.load("recover.yaml"))
    documents = manifests.load("full")
    (writers,) = (pod for pod in manifests.pods(documents) if pod.name == "writers")
    assert list(manifests.restricted_problems(recover.spec)) == []
    assert recover.container["image"] == writers.container["image"]
    assert recover.spec["serviceAccountName"] == writers.spec["serviceAccountName"]
    assert manifests.may_send(manifests.of_kind(documents, "NetworkPolicy"), recover, STORE, 443)
    staging = recover.mount(manifests.arguments(ray(documents))["--staging"])
    assert staging == writers.mount(manifests.arguments(ray(documents))["--staging"])
    known = subprocess.run([sys.executable, "-m", "ray_sink.cli", "upload", "--help"], capture_output=True, text=True)
    options = [word.split("=")[0] for word in recover.container["command"][2:]]
    assert recover.container["command"][:2] == ["ray-sink", "upload"]
    assert set(options) <= set(re.findall(r"--[a-z-]+", known.stdout))


def test_the_cluster_that_stays_grows_with_the_work_and_survives_its_head() -> None:
    spec = ray(manifests.load("cluster"))["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    sizes = {g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]}
    assert sizes["gpu"][0] == 0 < sizes["gpu"][1]
    assert sizes["writers"][0] >= 1, "an uploader is there while a job runs"


def test_the_overlay_for_a_store_of_ones_own_gives_it_to_the_uploaders_alone() -> None:
    found = {pod.name: pod for pod in all_pods("overlays/on-premises")}
    writers = found.pop("writers")
    assert writers.container["envFrom"] == [{"secretRef": {"name": "ray-sink-s3"}}]
    assert writers.environment["AWS_ENDPOINT_URL"].startswith("https://")
    volume = writers.mount(writers.environment["AWS_CA_BUNDLE"])
    assert volume is not None
    assert volume["configMap"] == {"name": "ray-sink-ca"}
    for other in found.values():
        assert "envFrom" not in other.container
        assert not [name for name in other.environment if name.startswith("AWS_")]
