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


def operator_problems(job: Mapping[str, Any]) -> list[str]:
    """What the operator would reject in a RayJob although its schema lets it pass."""
    return [*_job_problems(job), *_cluster_problems(job)]


def _job_problems(job: Mapping[str, Any]) -> Iterator[str]:
    name, spec = job["metadata"]["name"], job["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if len(name) > 47:
        yield f"the name of a RayJob has at most 47 characters, {name!r} has {len(name)}"
    if not _DNS_1035.fullmatch(name):
        yield f"{name!r} is no DNS-1035 label"
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
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"


def _cluster_problems(job: Mapping[str, Any]) -> Iterator[str]:
    cluster = job["spec"].get("rayClusterSpec")
    if cluster is None:
        return
    sidecar = job["spec"].get("submissionMode") == "SidecarMode"
    autoscaler_v2 = (
        cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    )
    for name, group in groups(job).items():
        parameters = group.get("rayStartParams", {})
        if group.get("resources") and parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{name}: resources stand in rayStartParams or in resources, not in both"
        if "labels" in parameters:
            yield f"{name}: labels stand at the top of the group, not in rayStartParams"
        pod = group["template"]["spec"]
        if not pod.get("containers"):
            yield f"{name}: a pod needs a container"
        restarts = pod.get("restartPolicy", "Never") != "Never"
        if restarts and (autoscaler_v2 or (sidecar and name == "head")):
            yield f"{name}: restartPolicy must be Never or unset"


def groups(job: Mapping[str, Any]) -> dict[str, Any]:
    """The head's group and the workers', by name."""
    cluster = job["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group for group in cluster.get("workerGroupSpecs", ())}
    return {"head": cluster["headGroupSpec"], **workers}
