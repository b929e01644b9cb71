"""What the API server and the KubeRay operator would say about a manifest, said without either.

The schemas are those of the operator's CustomResourceDefinitions; `operator_problems` holds the rules that
only the operator's own code enforces (KubeRay 1.7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# What `kubernetes_validate` takes for a schema of its own; core kinds change by addition only.
_KUBERNETES = "1.37"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def schema_of(crd: Path, version: str = "v1") -> dict[str, Any]:
    """The JSON Schema in a CustomResourceDefinition, closed: a field that it does not name is an error."""
    definition = yaml.load(crd.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (found,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version)
    return _closed(found)


def _closed(node: Mapping[str, Any]) -> dict[str, Any]:
    closed = {key: value for key, value in node.items() if key not in ("format", "default")}
    if node.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if node.get("nullable") and "type" in closed:
        closed["type"] = [closed["type"], "null"]
    if "items" in node:
        closed["items"] = _closed(node["items"])
    if isinstance(node.get("additionalProperties"), Mapping):
        closed["additionalProperties"] = _closed(node["additionalProperties"])
    if "properties" in node:
        properties = node["properties"]
        closed["properties"] = {name: _closed(child) for name, child in properties.items()}
        # The API server fills defaults in before it looks for what is missing.
        closed["required"] = [name for name in node.get("required", ()) if "default" not in properties.get(name, {})]
        if "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    return closed


def schema_problems(resource: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """What the API server would reject, each problem with the path to its field."""
    found = [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)
    ]
    # A CRD says nothing about its top-level metadata, which is that of every kind.
    return found + core_problems({"apiVersion": "v1", "kind": "ConfigMap", "metadata": resource["metadata"]})


def core_problems(resource: Mapping[str, Any]) -> list[str]:
    """What the API server would reject in one of Kubernetes' own kinds."""
    try:
        kubernetes_validate.validate(dict(resource), _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


def operator_problems(resource: Mapping[str, Any]) -> list[str]:
    """What the operator would reject in a RayJob or a RayCluster although its schema lets it pass."""
    found = list(_job_problems(resource)) if resource["kind"] == "RayJob" else list(_name_problems(resource, 53))
    return [*found, *_cluster_problems(resource)]


def _name_problems(resource: Mapping[str, Any], longest: int) -> Iterator[str]:
    name = resource["metadata"]["name"]
    if len(name) > longest:
        yield f"the name of a {resource['kind']} has at most {longest} characters, {name!r} has {len(name)}"
    if not _DNS_1035.fullmatch(name):
        yield f"{name!r} is no DNS-1035 label"


def _job_problems(job: Mapping[str, Any]) -> Iterator[str]:
    yield from _name_problems(job, 47)
    spec = job["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes: true"
    if shuts_down and "deletionRules" in spec.get("deletionStrategy", {}):
        yield "deletionRules excludes shutdownAfterJobFinishes"
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(SUBMISSION_MODES)}"
    if spec.get("backoffLimit", 0) > 0 and (mode == "InteractiveMode" or "clusterSelector" in spec):
        yield "backoffLimit works neither in InteractiveMode nor with clusterSelector"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be positive"
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if key in spec:
                yield f"SidecarMode works without {key} only"
    if "rayClusterSpec" not in spec and "clusterSelector" not in spec:
        yield "one of rayClusterSpec and clusterSelector must be there"
    if "clusterSelector" in spec and not spec["clusterSelector"].get("ray.io/cluster"):
        yield "clusterSelector names no ray.io/cluster"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def cluster_spec(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cluster in a RayJob or a RayCluster; None in a job that runs on one that is there."""
    spec: dict[str, Any] = resource["spec"]
    return spec if resource["kind"] == "RayCluster" else spec.get("rayClusterSpec")


def _cluster_problems(resource: Mapping[str, Any]) -> Iterator[str]:
    cluster = cluster_spec(resource)
    if cluster is None:
        return
    sidecar = resource["spec"].get("submissionMode") == "SidecarMode"
    autoscales = cluster.get("enableInTreeAutoscaling", False)
    autoscaler_v2 = autoscales and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    if cluster.get("authOptions", {}).get("mode") == "token" and _version(cluster) < (2, 52):
        yield "authOptions.mode: token needs rayVersion 2.52 or later"
    for name, group in groups(resource).items():
        parameters = group.get("rayStartParams", {})
        if group.get("resources") and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{name}: resources stand in rayStartParams or in resources, not in both"
        if "labels" in parameters:
            yield f"{name}: labels stand at the top of the group, not in rayStartParams"
        for text in (text for label in group.get("labels", {}).items() for text in label):
            if not _LABEL.fullmatch(text):
                yield f"{name}: {text!r} is no label of Kubernetes'"
        pod = group["template"]["spec"]
        if not pod.get("containers"):
            yield f"{name}: a pod needs a container"
            continue
        restarts = pod.get("restartPolicy", "Never") != "Never"
        if restarts and (autoscaler_v2 or (sidecar and name == "head")):
            yield f"{name}: restartPolicy must be Never or unset"
        if name == "head":
            given = {variable["name"] for variable in pod["containers"][0].get("env", ())}
            if found := sorted(given & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}):
                yield f"head: {', '.join(found)} stand in gcsFaultToleranceOptions, not in the environment"
        if autoscales and group.get("suspend"):
            yield f"{name}: a group of a cluster that scales itself cannot be suspended"


def _version(cluster: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in cluster.get("rayVersion", "0").split(".")[:2])


def groups(resource: Mapping[str, Any]) -> dict[str, Any]:
    """The head's group and the workers', by name; none where a job has no cluster of its own."""
    cluster = cluster_spec(resource)
    if cluster is None:
        return {}
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    return {"head": cluster["headGroupSpec"], **workers}
