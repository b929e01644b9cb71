"""Pods of a manifest on this machine, without Kubernetes: what kubelet and operator would do with their numbers.

Each has an address, shared memory, folders, pids and a host name of its own, a root that is read-only where the
manifest says so, and the `ray start` that KubeRay makes of its group.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from seaweedfs import ServerProcess

from tests.executables import environment
from tests.faults.processes import needs
from tests.manifests import PROJECT, Document, Pod, n_bytes
from tests.waiting import until

_HEAD = "10.99.0.1"
# In front of everything: a network of their own, in which pods are plugged into one bridge. Its pids end with it.
_NODE = """
set -e
ip link set lo up
ip link add bridge type bridge && ip addr add 10.99.0.254/24 dev bridge && ip link set bridge up
mount --make-rprivate / && mount -t tmpfs netns /run
n=0
for script in "$@"; do
    n=$((n + 1)) name=$(basename "$script" .sh)
    ip netns add "$name"
    ip link add "v$n" type veth peer name eth0 netns "$name"
    ip link set "v$n" master bridge up
    ip -n "$name" addr add "10.99.0.$n/24" dev eth0
    ip -n "$name" link set lo up && ip -n "$name" link set eth0 up
    ip -n "$name" route add default via 10.99.0.254
done
for script in "$@"; do
    name=$(basename "$script" .sh)
    ip netns exec "$name" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \\
        bash "$script" >"${script%.sh}.log" 2>&1 </dev/null &
done
wait
"""
# As kubelet does it: a container that fails is started again, and one that is to end gets a SIGTERM; asked for and told
# by files.
_LIFE = """
until [ -e "$control/go" ]; do sleep 0.2; done
ended=1
until [ $ended = 0 ] || [ -e "$control/terminate" ]; do
    "$@" &
    while kill -0 $! 2>/dev/null && [ ! -e "$control/terminate" ]; do sleep 0.2; done
    [ ! -e "$control/terminate" ] || kill -TERM $! 2>/dev/null
    ended=0
    wait $! || ended=$?
    [ $again = yes ] || break
done
echo $ended >"$control/ended.new" && mv "$control/ended.new" "$control/ended"
"""


class Cluster:
    """A manifest's pods, running. The first is the head; a submitter comes last.

    Args:
        folder: for logs and for what pods keep on disk.
        pods: Ray's, and the submitter.
        cluster: the specification of the RayCluster.
        bucket: a folder; pods that have an identity see it as ``/mnt/bucket``.
        identities: names of service accounts that have one.
        submit: what the submitter runs.
    """

    def __init__(
        self,
        folder: Path,
        pods: Sequence[Pod],
        cluster: Document,
        *,
        bucket: Path,
        identities: Sequence[str],
        submit: str,
    ) -> None:
        tools = all(shutil.which(tool) for tool in ("unshare", "ip"))
        needs("root, unshare and ip, for pods with namespaces of their own", os.geteuid() == 0 and tools)
        self.folder = folder
        self._pods = pods
        self._auth = cluster.get("authOptions", {}).get("mode", "disabled")
        (folder / "claim").mkdir()
        environment(folder / "programs")
        scripts = []
        for pod in pods:
            (folder / pod.name).mkdir()
            shown = bucket if pod.spec.get("serviceAccountName") in identities else None
            command = submit if pod.name == "submitter" else ray_start(pod)
            (folder / f"{pod.name}.sh").write_text(self._script(pod, command, shown))
            scripts.append(str(folder / f"{pod.name}.sh"))
        outer = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._server = ServerProcess([*outer, "bash", "-c", _NODE, "node", *scripts], folder=folder)

    def _script(self, pod: Pod, command: str, bucket: Path | None) -> str:
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        control = self.folder / pod.name
        own = control / "own"
        lines = ["set -e", "mount --make-rprivate /", f"hostname {pod.name}", f"mount --bind {control} {control}"]
        # what Python needs of a /tmp that will be covered goes into the new one
        for needed in sorted({str(PROJECT), sys.prefix, sys.base_prefix, str(self.folder)}):
            if Path(needed).is_relative_to("/tmp"):
                inside = own / Path(needed).relative_to("/tmp")
                lines += [f"mkdir -p {inside}", f"mount --rbind {needed} {inside}"]
        lines.append("mount -t tmpfs mnt /mnt")
        if bucket is not None:
            lines += ["mkdir /mnt/bucket", f"mount --bind {bucket} /mnt/bucket"]
        for mount in sorted(pod.container["volumeMounts"], key=lambda mount: mount["mountPath"] == "/tmp"):
            volume, place = volumes[mount["name"]], mount["mountPath"]
            lines.append(f"mkdir -p {place}")
            if "persistentVolumeClaim" in volume:
                lines.append(f"mount --bind {self.folder / 'claim'} {place}")
            elif place == "/tmp":
                lines += [f"mkdir -p {own}", f"mount --rbind {own} /tmp"]
            else:
                lines.append(
                    f"mount -t tmpfs -o size={n_bytes(volume['emptyDir']['sizeLimit'])} {mount['name']} {place}"
                )
        if pod.group and pod.mount("/dev/shm") is None:  # the operator's own
            room = n_bytes(pod.container["resources"]["limits"]["memory"])
            lines.append(f"mount -t tmpfs -o size={room} shm /dev/shm")
        if pod.container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            lines += ["mount -o remount,bind,ro /", "mount -o remount,ro /mnt", "! touch /x /mnt/x 2>/dev/null"]
        environment = {
            "PATH": f"{self.folder}/programs/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(PROJECT),
            "HOME": "/tmp",
            "RAY_AUTH_MODE": self._auth,
            **({"RAY_AUTH_TOKEN": "0123456789abcdef" * 4} if self._auth == "token" else {}),
            # a small machine: processes that nobody has asked for yet cost it minutes
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            **pod.environment,
        }
        given = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        return "\n".join(
            [
                *lines,
                "set +e",
                "cd /tmp",
                f"control={control} again={'no' if pod.spec.get('restartPolicy') == 'Never' else 'yes'}",
                "set -- " + f"env -i {given} bash -c -- {shlex.quote(command)}",
                _LIFE,
            ]
        )

    def start(self, deadline_s: float) -> None:
        """Start the pods as the operator does: the head, then the others, and a submitter when all are there."""
        nodes = [pod.name for pod in self._pods if pod.group]
        for names in (nodes[:1], nodes[1:], [pod.name for pod in self._pods if not pod.group]):
            for name in names:
                (self.folder / name / "go").touch()
            for name in set(names) & set(nodes):
                self._server.wait_until(partial(self._runs, name), deadline_s=deadline_s)

    def _runs(self, pod: str) -> bool:
        return "Ray runtime started" in self.log(pod)

    def ended(self, pod: str) -> int | None:
        """How a pod's container ended; None while it runs."""
        said = self.folder / pod / "ended"
        return int(said.read_text()) if said.exists() else None

    def terminate(self, pod: str) -> None:
        """Tell its container to end, and wait no longer than its manifest says."""
        (self.folder / pod / "terminate").touch()

    def log(self, pod: str) -> str:
        """What it has printed."""
        log = self.folder / f"{pod}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def close(self) -> None:
        """End everything, and take the folder away."""
        self._server.stop()


def ray_start(pod: Pod) -> str:
    """The command that the operator makes of a group."""
    resources = pod.container["resources"]
    options: Mapping[str, str] = {
        "num-cpus": resources["requests"]["cpu"],
        "memory": str(n_bytes(resources["limits"]["memory"])),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        **({"num-gpus": resources["limits"]["nvidia.com/gpu"]} if "nvidia.com/gpu" in resources["limits"] else {}),
        **({"dashboard-host": "0.0.0.0"} if pod.name == "head" else {"address": f"{_HEAD}:6379"}),
        **pod.group["rayStartParams"],
    }
    if labels := pod.group.get("labels"):
        options = {**options, "labels": ",".join(f"{name}={value}" for name, value in labels.items())}
    words = " ".join(f"--{name}={value}" for name, value in sorted(options.items()))
    head = "--head " if pod.name == "head" else ""
    return f"ulimit -n 65536 2>/dev/null; exec ray start {head}--block {words}"


def ray_job_submit(entrypoint: str) -> str:
    """The command of the operator's submitter."""
    return f"ray job submit --address http://{_HEAD}:8265 --submission-id try-1 -- {entrypoint}"


def finished(cluster: Cluster, pod: str, deadline_s: float) -> int:
    """Wait for a pod's container to end; how it ended."""
    until(lambda: cluster.ended(pod) is not None, deadline_s=deadline_s)
    code = cluster.ended(pod)
    assert code is not None
    return code
