"""A network of this machine's own: a switch, and cables to nodes that have nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.processes import needs

# Runs until its standard input is closed, by us or by the kernel when this process dies, however it dies; what the
# processes in the namespaces still do ends with them.
_SWITCH = """
gone() {
    for link in $(ls /sys/class/net | grep "^$1c[0-9]"); do ip link del "$link"; done
    for space in $(ip netns list | cut -d' ' -f1 | grep "^$1n[0-9]"); do ip netns del "$space"; done
    ip link del "$1"
}
trap 'gone "$1" 2>/dev/null' EXIT
ip link add "$1" type bridge && ip addr add "$2/24" dev "$1" && ip link set "$1" up || exit 1
echo up
read _
"""


class Cable:
    """What leads from the switch to one node.

    Attributes:
        namespace: the node's network namespace, as ``ip netns`` knows it.
        address: the node's.
    """

    def __init__(self, switch: str, number: int, prefix: str) -> None:
        self._switch = switch
        self._plug = f"{switch}c{number}"
        self.namespace = f"{switch}n{number}"
        self.address = f"{prefix}.{number}"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._plug, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", link, "up")
        _ip("-n", self.namespace, "route", "add", "default", "via", f"{prefix}.254")
        _ip("link", "set", self._plug, "up")
        self.mend()

    def cut(self) -> None:
        """Nothing goes through any more. Its ends stay up, as when a switch further away is gone."""
        _ip("link", "set", self._plug, "nomaster")

    def mend(self) -> None:
        """All is well again."""
        _ip("link", "set", self._plug, "master", self._switch)

    def hides(self, *, on: bool) -> None:
        """Two cables that hide do not reach each other; both reach the rest, the switch's own address included."""
        subprocess.run(["bridge", "link", "set", "dev", self._plug, "isolated", "on" if on else "off"], check=True)

    @property
    def sent_bytes(self) -> int:
        """What the node has sent so far."""
        return int(Path(f"/sys/class/net/{self._plug}/statistics/rx_bytes").read_text())

    def unread_bytes(self, *pids: int) -> int:
        """What these processes of the node have been sent, through its own loopback too, and not read yet."""
        command = ["ip", "netns", "exec", self.namespace, "ss", "--tcp", "--numeric", "--processes", "--no-header"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        theirs = [line for line in lines if any(f"pid={pid}," in line for pid in pids)]
        return sum(int(line.split()[1]) for line in theirs)


class Network:
    """A switch and its cables; a context manager.

    Attributes:
        gateway: the switch's address, which this process has, too: servers for all nodes listen there.
    """

    def __init__(self) -> None:
        here = os.getpid()
        self._name = f"rs{here:x}"
        self._prefix = f"10.{64 + here // 254 % 128}.{here % 254}"
        self._cables = 0
        self.gateway = f"{self._prefix}.254"

    def __enter__(self) -> Self:
        for program in ("ip", "bridge"):
            needs(f"{program} (Debian package iproute2)", shutil.which(program) is not None)
        needs("root, for networks of its own", os.geteuid() == 0)
        pipe = subprocess.PIPE
        self._switch = subprocess.Popen(
            ["sh", "-c", _SWITCH, "sh", self._name, self.gateway],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )
        assert self._switch.stdout is not None
        up = self._switch.stdout.readline() == "up\n"
        needs(f"the right to make networks ({'' if up else self._switch.communicate()[1].strip()})", up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._switch.communicate()

    def cable(self) -> Cable:
        """One more, with an address that nobody had."""
        self._cables += 1
        return Cable(self._name, self._cables, self._prefix)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
