from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ray_sink.config import WriterOptions
from tests import kuberay

PROJECT = Path(__file__).parent.parent
MANIFEST = PROJECT / "cluster_configs" / "kuberay" / "rayjob.yaml"
IMAGE_ROOT = Path("/home/ray/ray_sink")
# The schemas belong to KubeRay and are looked for beside the project; this names another folder.
CRDS = Path(os.environ.get("KUBERAY_CRDS", PROJECT.parent / "shared" / "kuberay-crds"))

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    crd = CRDS / "ray.io_rayjobs.yaml"
    if not crd.is_file() and "KUBERAY_CRDS" not in os.environ:
        pytest.skip(f"{crd.name} is not here; KUBERAY_CRDS names the folder with KubeRay's CRDs")
    return kuberay.schema_of(crd)


@pytest.fixture
def job() -> dict[str, Any]:
    (found,) = (doc for doc in kuberay.documents(MANIFEST) if doc["kind"] == "RayJob")
    # Groups share parts by YAML's anchors; a test changes one of them.
    unshared: dict[str, Any] = json.loads(json.dumps(found))
    return unshared


def pod(job: dict[str, Any], group: str) -> dict[str, Any]:
    spec: dict[str, Any] = kuberay.groups(job)[group]["template"]["spec"]
    return spec


def container(job: dict[str, Any], group: str) -> dict[str, Any]:
    (found,) = pod(job, group)["containers"]
    return dict(found)


def arguments(job: dict[str, Any]) -> dict[str, str]:
    words = shlex.split(job["spec"]["entrypoint"])[2:]
    return dict(zip(words[::2], words[1::2], strict=True))


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity[:-2])


def test_the_api_server_takes_the_rayjob(job: dict[str, Any], schema: dict[str, Any]) -> None:
    assert kuberay.schema_problems(job, schema) == []


def test_the_api_server_takes_the_kinds_beside_it() -> None:
    others = [doc for doc in kuberay.documents(MANIFEST) if doc["kind"] != "RayJob"]
    assert {doc["kind"] for doc in others} == {"ServiceAccount", "PersistentVolumeClaim"}
    assert [kuberay.core_problems(doc) for doc in others] == [[], []]


def test_every_pod_is_one_that_kubernetes_takes(job: dict[str, Any]) -> None:
    for name, group in kuberay.groups(job).items():
        assert kuberay.core_problems({"apiVersion": "v1", "kind": "Pod", **group["template"]}) == [], name


@pytest.mark.parametrize(
    "misspell",
    [
        lambda job: job.update(specs={}),
        lambda job: job["metadata"].update(lables={}),
        lambda job: job["spec"].update(ttlSecondAfterFinished=1),
        lambda job: job["spec"]["rayClusterSpec"].update(workerGroups=[]),
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
    job: dict[str, Any], schema: dict[str, Any], misspell: Change
) -> None:
    misspell(job)
    assert len(kuberay.schema_problems(job, schema)) == 1


def test_a_misspelled_field_of_a_core_kind_is_caught() -> None:
    (claim,) = (doc for doc in kuberay.documents(MANIFEST) if doc["kind"] == "PersistentVolumeClaim")
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    assert "accessMode" in " ".join(kuberay.core_problems(claim))


def test_the_operator_takes_the_rayjob(job: dict[str, Any]) -> None:
    assert kuberay.operator_problems(job) == []


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
        (lambda job: job["spec"].update(activeDeadlineSeconds=0), "positive"),
        (lambda job: job["spec"].update(submissionMode="SidecarMode", submitterConfig={}), "submitterConfig"),
        (lambda job: job["spec"].update(submissionMode="SidecarMode", submitterPodTemplate={}), "submitterPodTemplate"),
        (
            lambda job: (
                job["spec"].update(submissionMode="SidecarMode"),
                pod(job, "head").update(restartPolicy="Always"),
            ),
            "head: restartPolicy",
        ),
        (
            lambda job: (
                job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}),
                pod(job, "gpu").update(restartPolicy="OnFailure"),
            ),
            "gpu: restartPolicy",
        ),
        (lambda job: job["spec"].pop("rayClusterSpec"), "one of"),
        (lambda job: job["spec"].update(runtimeEnvYAML="working_dir"), "runtimeEnvYAML"),
        (lambda job: kuberay.groups(job)["writers"]["rayStartParams"].update({"num-cpus": "4"}), "not in both"),
        (lambda job: kuberay.groups(job)["gpu"]["rayStartParams"].update(labels="a=b"), "labels"),
        (lambda job: pod(job, "head").update(containers=[]), "container"),
    ],
)
def test_each_rule_of_the_operator_is_checked(job: dict[str, Any], change: Change, said: str) -> None:
    change(job)
    (problem,) = kuberay.operator_problems(job)
    assert said in problem


def test_the_entrypoint_is_a_file_of_the_project_and_knows_its_options(job: dict[str, Any]) -> None:
    python, script, *_ = shlex.split(job["spec"]["entrypoint"])
    here = PROJECT / Path(script).relative_to(IMAGE_ROOT)
    assert python == "python"
    assert here.is_file()
    known = subprocess.run(
        [sys.executable, str(here), "--help"], capture_output=True, text=True, check=True, timeout=120, cwd=PROJECT
    )
    assert set(arguments(job)) <= set(re.findall(r"--[a-z-]+", known.stdout))


def test_the_image_puts_the_project_where_the_entrypoint_looks() -> None:
    assert f" {IMAGE_ROOT}\n" in (MANIFEST.parent / "Dockerfile").read_text()


def test_the_image_the_cluster_and_the_pins_have_one_ray(job: dict[str, Any]) -> None:
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"FROM rayproject/ray:{version}-" in (MANIFEST.parent / "Dockerfile").read_text()
    assert f"ray=={version}\n" in (PROJECT / "constraints.txt").read_text()


def test_writers_are_asked_for_by_the_resource_that_one_group_has(job: dict[str, Any]) -> None:
    assert "resources" in {field.name for field in fields(WriterOptions)}
    asked = arguments(job)["--writer-resource"]
    having = [name for name, group in kuberay.groups(job).items() if asked in group.get("resources", {})]
    assert having == ["writers"]
    assert WriterOptions(resources={asked: 1.0}).resources == {asked: 1.0}


def test_a_retry_finds_the_same_run_on_a_claim_that_all_nodes_mount(job: dict[str, Any]) -> None:
    staging = Path(arguments(job)["--staging"])
    claims = {d["metadata"]["name"]: d for d in kuberay.documents(MANIFEST) if d["kind"] == "PersistentVolumeClaim"}
    assert job["spec"]["backoffLimit"] == 2
    assert not re.search(r"[$`]", job["spec"]["entrypoint"])  # nothing that differs from try to try
    for name in kuberay.groups(job):
        (volume,) = (
            mount["name"]
            for mount in container(job, name)["volumeMounts"]
            if staging.is_relative_to(mount["mountPath"])
        )
        (claim,) = (v["persistentVolumeClaim"]["claimName"] for v in pod(job, name)["volumes"] if v["name"] == volume)
        assert claims[claim]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_nothing_runs_on_the_head(job: dict[str, Any]) -> None:
    assert kuberay.groups(job)["head"]["rayStartParams"]["num-cpus"] == "0"


def test_gpus_are_asked_for_and_their_taint_tolerated_in_one_group(job: dict[str, Any]) -> None:
    with_gpu = [name for name in kuberay.groups(job) if "nvidia.com/gpu" in container(job, name)["resources"]["limits"]]
    assert with_gpu == ["gpu"]
    assert [name for name in kuberay.groups(job) if pod(job, name).get("tolerations")] == ["gpu"]


def test_a_pod_drains_before_it_is_killed(job: dict[str, Any]) -> None:
    for name in kuberay.groups(job):
        (drain,) = (
            float(variable["value"])
            for variable in container(job, name)["env"]
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        )
        assert pod(job, name)["terminationGracePeriodSeconds"] >= drain + 20
        assert "lifecycle" not in container(job, name)


def test_pods_have_the_least_rights_and_an_identity_of_their_own(job: dict[str, Any]) -> None:
    accounts = {doc["metadata"]["name"] for doc in kuberay.documents(MANIFEST) if doc["kind"] == "ServiceAccount"}
    for name in kuberay.groups(job):
        inside = container(job, name)["securityContext"]
        around = pod(job, name)["securityContext"]
        assert inside == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert around["runAsNonRoot"] is True
        assert around["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (around["runAsUser"], around["fsGroup"], around["fsGroupChangePolicy"]) == (1000, 100, "OnRootMismatch")
        assert pod(job, name)["serviceAccountName"] in accounts


def test_no_secret_stands_in_the_manifest() -> None:
    assert not re.search(r"secret|password|access_key|_token", MANIFEST.read_text(), re.IGNORECASE)


def test_memory_holds_the_object_store_and_as_much_again(job: dict[str, Any]) -> None:
    for name, group in kuberay.groups(job).items():
        resources = container(job, name)["resources"]
        store = float(group["rayStartParams"]["object-store-memory"]) / 2**30
        assert gibibytes(resources["limits"]["memory"]) >= 2 * store
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        (size,) = (v["emptyDir"]["sizeLimit"] for v in pod(job, name)["volumes"] if "emptyDir" in v)
        assert gibibytes(resources["limits"]["ephemeral-storage"]) >= gibibytes(size)


def test_a_job_that_hangs_or_ends_frees_its_nodes(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 300 <= spec["ttlSecondsAfterFinished"] <= 600
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]


def test_what_the_user_fills_in_is_listed_on_top() -> None:
    head, _, body = MANIFEST.read_text().partition("---\n")
    listed = re.findall(r"^#   (\S+) ", head, re.MULTILINE)
    marked = [line for line in body.splitlines() if "change-me" in line]
    assert len(listed) == 4
    assert [word in line for word, line in zip(listed, marked, strict=True)] == [True] * 4
