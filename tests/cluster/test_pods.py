"""What nodes stand on: networks that can be cut, pods that share nothing but a filesystem; nothing stays of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.cluster.network import Cable, Network
from tests.cluster.patience import eventually
from tests.cluster.pods import Pod
from tests.faults.clusters import PROJECT
from tests.faults.glusterfs import GlusterFS, glusterfs

_SCRIPT = "import sys; from pathlib import Path; from tests.cluster.test_pods import show; show(Path(sys.argv[1]))"
_MARK = "RS_LEFT"


def reaches(cable: Cable, address: str) -> bool:
    """Whether a packet comes back from there: nobody listens, and that is an answer."""
    command = ["timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/9"]
    done = subprocess.run(["ip", "netns", "exec", cable.namespace, *command], capture_output=True, check=False)
    return b"refused" in done.stderr


def test_cables_are_cut_and_hide_from_each_other(network: Network) -> None:
    one, two, three = (network.cable() for _ in range(3))
    assert reaches(one, two.address)
    assert reaches(one, network.gateway)
    for cable in (one, two):
        cable.hides(on=True)
    assert not reaches(one, two.address)
    assert reaches(one, three.address)
    assert reaches(one, network.gateway)
    two.cut()
    assert not reaches(two, three.address)
    one.hides(on=False)
    two.mend()
    eventually(lambda: reaches(one, two.address), deadline_s=60)


def test_pods_share_a_filesystem_and_nothing_else(network: Network, shared: GlusterFS, shared_here: Path) -> None:
    folder = uuid.uuid4().hex
    (shared_here / folder).mkdir()
    look = (
        f"cd /tmp/shared/{folder}; touch /tmp/{folder} /dev/shm/{folder};"
        f" (hostname; echo $$; ls /tmp /dev/shm | grep -c {folder}; ls /proc | grep -c '^[0-9]') > $(hostname).now;"
        " mv $(hostname).now $(hostname); exec sleep 1000"
    )
    pods = [Pod(name, network.cable(), shared.volume, ["sh", "-c", look], env={}) for name in ("one", "two")]
    try:
        said = [shared_here / folder / pod.name for pod in pods]
        eventually(lambda: all(file.exists() for file in said), deadline_s=120)
        for pod, file in zip(pods, said, strict=True):
            name, pid, mine, processes = file.read_text().split()
            assert name == pod.name
            assert int(pid) < 50
            assert mine == "2"
            assert int(processes) < 20
        assert not Path(f"/tmp/{folder}").exists()
        pods[0].stop()
        assert pods[0].gone
        assert not pods[1].ended
    finally:
        for pod in pods:
            pod.stop()


def show(here: Path) -> None:
    """A network, a shared filesystem and a pod, until somebody ends it."""
    with Network() as network, glusterfs(network.gateway) as shared, shared.mount(here):
        pod = Pod("one", network.cable(), shared.volume, ["sh", "-c", "touch /tmp/shared/up; exec sleep 1000"], env={})
        try:
            eventually((here / "up").exists, deadline_s=120)
            print("up", flush=True)
            sys.stdin.read()
        finally:
            pod.stop()


@pytest.mark.usefixtures("network")  # which says what is missing
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_the_tests_end(tmp_path: Path, number: int) -> None:
    mark = uuid.uuid4().hex
    here = tmp_path / "here"
    # a signal that whoever started the tests ignores would be ignored by their children, too
    signal_before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=PROJECT,
            env={**os.environ, _MARK: mark, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    finally:
        signal.signal(signal.SIGINT, signal_before)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert links(process.pid)
    assert spaces(process.pid)
    assert str(here) in Path("/proc/mounts").read_text()
    assert len(marked(mark)) > 5
    os.kill(process.pid, number)
    process.wait(60)
    eventually(lambda: not (links(process.pid) or spaces(process.pid) or marked(mark)), deadline_s=60)
    eventually(lambda: str(here) not in Path("/proc/mounts").read_text(), deadline_s=60)


def links(pid: int) -> list[str]:
    return [name for name in os.listdir("/sys/class/net") if name.startswith(f"rs{pid:x}")]


def spaces(pid: int) -> list[str]:
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line.startswith(f"rs{pid:x}")]


def marked(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
