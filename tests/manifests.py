"""What is in cluster_configs: files, overlays built, the pods that come of them, and who of those may reach whom."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import kuberay

PROJECT = Path(__file__).parent.parent
CONFIGS = PROJECT / "cluster_configs"
KUBERAY = CONFIGS / "kuberay"
FILES = sorted(path for path in KUBERAY.rglob("*.yaml") if path.name != "kustomization.yaml")
BASES = ("full", "cluster")
NODE_LOCAL = "overlays/node-local"
OVERLAYS = ("overlays/gke-filestore", NODE_LOCAL, "overlays/on-premises")
GUARDED = (*BASES, *OVERLAYS)
CLUSTERS = ("rayjob.yaml", *GUARDED)

Document = dict[str, Any]


def unshared(document: Document) -> Document:
    """A copy whose parts are its own: YAML's aliases make one part of several, and a test changes one of them."""
    copied: Document = json.loads(json.dumps(document))
    return copied


def collected(folder: Path) -> list[Document]:
    """The documents that a kustomization gathers, its own changes left aside."""
    found: list[Document] = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / name
        found += collected(path) if path.is_dir() else kuberay.documents(path)
    return [unshared(document) for document in found]


def built(folder: Path) -> list[Document]:
    """What `kubectl apply -k` would send."""
    if shutil.which("kubectl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have kubectl")
        pytest.skip("kubectl is not installed; python .ci/kubectl.py DIR gets it")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def load(name: str) -> list[Document]:
    """Everything that is applied together, by its name below cluster_configs/kuberay."""
    if name in BASES:
        return collected(KUBERAY / name)
    if name in OVERLAYS:
        return built(KUBERAY / name)
    return [unshared(document) for document in kuberay.documents(KUBERAY / name)]


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def ray(documents: Sequence[Document]) -> Document:
    """The one RayJob or RayCluster."""
    (found,) = of_kind(documents, "RayJob", "RayCluster")
    return found


@dataclass(frozen=True)
class Pod:
    """A pod as it would run.

    Attributes:
        name: its group's, or ``submitter``, ``redis`` or ``recover``.
        labels: its labels, the operator's with them.
        spec: its specification.
        group: what its resource says of it beside the template; empty where it is no node of Ray's.
    """

    name: str
    labels: Mapping[str, str]
    spec: Document
    group: Document

    @property
    def container(self) -> Document:
        found: Document = self.spec["containers"][0]
        return found

    @property
    def environment(self) -> dict[str, Any]:
        return {variable["name"]: variable.get("value") for variable in self.container.get("env", ())}

    def mount(self, place: str) -> Document | None:
        """The volume that holds a path."""
        inside = [m for m in self.container.get("volumeMounts", ()) if Path(place).is_relative_to(m["mountPath"])]
        if not inside:
            return None
        name = max(inside, key=lambda mount: len(mount["mountPath"]))["name"]
        (volume,) = (volume for volume in self.spec["volumes"] if volume["name"] == name)
        found: Document = volume
        return found


def ray_pods(resource: Document) -> list[Pod]:
    """The nodes of a RayJob or a RayCluster."""
    pods = []
    for name, group in kuberay.groups(resource).items():
        kind = "head" if name == "head" else "worker"
        labels = {
            **group["template"].get("metadata", {}).get("labels", {}),
            "ray.io/node-type": kind,
            "ray.io/group": "headgroup" if name == "head" else name,
            "ray.io/is-ray-node": "yes",
        }
        pods.append(Pod(name, labels, group["template"]["spec"], group))
    return pods


def pods(documents: Sequence[Document]) -> list[Pod]:
    """Every pod that comes of these documents."""
    found = []
    for resource in of_kind(documents, "RayJob", "RayCluster"):
        found += ray_pods(resource)
        if template := resource["spec"].get("submitterPodTemplate"):
            found.append(Pod("submitter", template["metadata"]["labels"], template["spec"], {}))
    for name, kind in (("redis", "StatefulSet"), ("recover", "Job")):
        for resource in of_kind(documents, kind):
            template = resource["spec"]["template"]
            found.append(Pod(name, template["metadata"]["labels"], template["spec"], {}))
    return found


def restricted_problems(pod: Document, beside: Sequence[Document] = ()) -> Iterator[str]:
    """What keeps a pod out of a namespace that enforces ``restricted``, the strictest of the Pod Security Standards."""
    around = pod.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", ()):
        if kinds := volume.keys() - {"name", *_VOLUMES}:
            yield f"volume {', '.join(kinds)}"
    for container in (*pod.get("initContainers", ()), *pod["containers"], *beside):
        inside = container.get("securityContext", {})
        name = container["name"]
        if inside.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if "ALL" not in inside.get("capabilities", {}).get("drop", ()) or "add" in inside["capabilities"]:
            yield f"{name}: capabilities"
        if not inside.get("runAsNonRoot", around.get("runAsNonRoot")):
            yield f"{name}: runAsNonRoot"
        if inside.get("runAsUser", around.get("runAsUser")) == 0:
            yield f"{name}: runAsUser"
        if inside.get("seccompProfile", around.get("seccompProfile", {})).get("type") != "RuntimeDefault":
            yield f"{name}: seccompProfile"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{name}: hostPort"


_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")


def may_send(policies: Sequence[Document], pod: Pod, to: Pod | str, port: int, namespace: str = "ray-sink") -> bool:
    """Whether network policies let a pod out to another one, or to an address."""
    ours = [p["spec"] for p in policies if _selects(p["spec"]["podSelector"], pod.labels)]
    ours = [spec for spec in ours if "Egress" in spec["policyTypes"]]
    rules = [rule for spec in ours for rule in spec.get("egress", ())]
    return not ours or any(
        _port(rule, port) and any(_peer(peer, to, namespace) for peer in rule["to"]) for rule in rules
    )


def may_receive(policies: Sequence[Document], pod: Pod, of: Pod, port: int, namespace: str = "ray-sink") -> bool:
    """Whether network policies let another pod, in that namespace, in."""
    ours = [p["spec"] for p in policies if _selects(p["spec"]["podSelector"], pod.labels)]
    ours = [spec for spec in ours if "Ingress" in spec["policyTypes"]]
    rules = [rule for spec in ours for rule in spec.get("ingress", ())]
    return not ours or any(
        _port(rule, port) and any(_peer(peer, of, namespace) for peer in rule["from"]) for rule in rules
    )


def _port(rule: Document, port: int) -> bool:
    return "ports" not in rule or port in [given["port"] for given in rule["ports"]]


def _peer(peer: Document, other: Pod | str, namespace: str) -> bool:
    if isinstance(other, str):
        block = peer.get("ipBlock")
        if block is None:
            return False
        address = ipaddress.ip_address(other)
        inside = [address in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", ()))]
        return inside[0] and not any(inside[1:])
    if "podSelector" not in peer:
        return False
    if "namespaceSelector" not in peer:
        return namespace == "ray-sink" and _selects(peer["podSelector"], other.labels)
    labels = {"kubernetes.io/metadata.name": namespace}
    return _selects(peer["namespaceSelector"], labels) and _selects(peer["podSelector"], other.labels)


def _selects(selector: Document, labels: Mapping[str, str]) -> bool:
    asked = selector.get("matchExpressions", ())
    assert all(expression["operator"] == "In" for expression in asked)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in asked
    )


def arguments(resource: Document) -> dict[str, str]:
    """The options in a RayJob's entrypoint; a flag has no value."""
    found: dict[str, str] = {}
    for word in resource["spec"]["entrypoint"].split()[2:]:
        if word.startswith("--"):
            found[word] = ""
        else:
            assert found[list(found)[-1]] == "", word
            found[list(found)[-1]] = word
    return found


def n_bytes(quantity: str) -> int:
    """A quantity of Kubernetes', in bytes."""
    found = re.fullmatch(r"(\d+)(Mi|Gi|Ti|)", quantity)
    assert found is not None, quantity
    return int(found[1]) << 10 * ("", "Ki", "Mi", "Gi", "Ti").index(found[2])
