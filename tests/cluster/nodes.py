"""Ray over several nodes of this machine, each of which can be killed, cut off, drained and replaced."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.cluster.network import Network
from tests.cluster.patience import eventually
from tests.cluster.pods import Pod
from tests.faults import gcs
from tests.faults.clusters import PROJECT

_PORT = 6379
_STORE_BYTES = 100_000_000
_STARTED = "Ray runtime started."
_TRIES = 12


@dataclass(frozen=True, slots=True)
class Kind:
    """What a node is for.

    Attributes:
        name: of the kind; host names begin with it.
        cpus: logical ones.
        resources: that only nodes of this kind have.
    """

    name: str
    cpus: int
    resources: Mapping[str, int]


HEAD = Kind("head", 0, {})
PRODUCER = Kind("producer", 2, {"producer": 2})
WRITER = Kind("writer", 1, {"writer": 4})

_SETTINGS = {
    # a node that is cut off is declared dead after some 15 s instead of a minute
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    # nodes wait so long for a head that comes back
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    # a machine may have other things to do
    "RAY_gcs_server_port_wait_time_s": "240",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "90",
    # memory is the whole machine's, of which others have some
    "RAY_memory_monitor_refresh_ms": "0",
    # processes that nobody has asked for yet
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "PYTHONPATH": str(PROJECT),
    "PYTHONWARNINGS": "ignore",
}


class Node:
    """A Ray node in its pod.

    Attributes:
        kind: what it is for.
        pod: where it runs.
    """

    def __init__(self, kind: Kind, plugged: Callable[[], Pod]) -> None:
        self.kind = kind
        self.pod = plugged()
        self._plugged = plugged
        self._tries = 1

    def try_again(self) -> None:
        """Ray gives up when a node is not there within 30 s, which a busy machine may need more often than once."""
        said = self.pod.says()
        self.pod.stop()
        self._tries += 1
        assert self._tries <= _TRIES, f"{self} did not come up: {said[-3000:]}"
        self.pod = self._plugged()

    @property
    def address(self) -> str:
        return self.pod.cable.address

    def __repr__(self) -> str:
        return f"{self.pod.name} ({self.address})"


class Nodes:
    """A head and its workers; a context manager, after which none is left.

    Args:
        network: where they are plugged in.
        volume: the volume file of the shared filesystem.
        env: set in every node.

    Attributes:
        env: settings of Ray's and of the store's, for drivers too.
    """

    def __init__(self, network: Network, volume: str, env: Mapping[str, str]) -> None:
        self._network = network
        self._volume = volume
        self._keeper: Mapping[str, str] = {}
        self._clusters = 0
        self.env = {**_SETTINGS, **env}
        self._all: list[Node] = []
        self._numbers = 0
        self._head: Node | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in [*self._all]:
            self.stop(node)

    # -- coming and going --------------------------------------------------------------------------------------------

    @property
    def head(self) -> Node:
        assert self._head is not None
        return self._head

    @property
    def address(self) -> str:
        """The cluster's, as ``ray.init`` takes it."""
        return f"{self.head.address}:{_PORT}"

    def of(self, kind: Kind) -> list[Node]:
        return [node for node in self._all if node.kind is kind]

    def start(self, kind: Kind, *, instead_of: Node | None = None) -> Node:
        """Begin to start a node; `up` waits for it.

        Args:
            kind: what for.
            instead_of: one that is gone, whose address it gets.
        """
        self._numbers += 1
        cable = instead_of.pod.cable if instead_of is not None else self._network.cable()
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            "--include-log-monitor=false",
            *(f"--node-ip-address={cable.address}", f"--num-cpus={kind.cpus}"),
            *(f"--object-store-memory={_STORE_BYTES}", f"--resources={json.dumps(kind.resources)}"),
            *((f"--port={_PORT}", "--head", "--include-dashboard=false", "--no-monitor") if kind is HEAD else ()),
            *((f"--address={self.address}",) if kind is not HEAD else ()),
        ]
        name = f"{kind.name}{self._numbers}"
        settings = {**self.env, **(self._keeper if kind is HEAD else {})}
        settings["RAY_external_storage_namespace"] = f"cluster{self._clusters}"
        node = Node(kind, lambda: Pod(name, cable, self._volume, command, env=settings))
        self._all.append(node)
        if kind is HEAD:
            self._head = node
        return node

    def up(self, *nodes: Node, but: str = "") -> None:
        """Return when each of these has started and Ray knows it as alive, and not under the id `but`."""

        def there() -> bool:
            for node in nodes:
                if node.pod.ended:
                    node.try_again()
            # one that is known may still be given up by its own `ray start`
            if not all(_STARTED in node.pod.says() for node in nodes):
                return False
            alive = self.alive()
            return all(alive.get(node.address, but) != but for node in nodes)

        eventually(there)

    def stop(self, node: Node) -> None:
        """Nothing of it is left, as when the power goes."""
        self._all.remove(node)
        node.pod.stop()

    def complete(self, keeper: Mapping[str, str] | None = None) -> None:
        """Start what is missing: a head, two producers' nodes and a writers' node; take away what is too much.

        Args:
            keeper: settings of a head whose knowledge outlives it; None: of whatever head there is.
        """
        headless = not self.of(HEAD) or self.head.pod.ended  # to ask who is alive would take its time
        if headless or (keeper is not None and keeper != self._keeper):
            for node in [*self._all]:
                self.stop(node)
            self._keeper = keeper or {}
            self._clusters += 1
            self.up(self.start(HEAD))
        alive = self.alive()
        for node in [*self._all]:
            if node.pod.ended or (node.kind is not HEAD and node.address not in alive):
                self.stop(node)
        wanted = ((PRODUCER, 2), (WRITER, 1))
        for kind, count in wanted:
            for node in self.of(kind)[count:]:
                self.stop(node)
            for _ in range(count - len(self.of(kind))):
                self.start(kind)
        self.up(*self._all)
        addresses = {node.address for node in self._all}
        eventually(lambda: self.alive().keys() == addresses)

    # -- what Ray says -----------------------------------------------------------------------------------------------

    def alive(self) -> dict[str, str]:
        """Ids of the nodes that Ray takes for alive, by address; empty while no head answers."""
        return gcs.alive(self.address)

    def id_of(self, node: Node) -> str:
        return self.alive()[node.address]

    def drain(self, node: Node, *, deadline_s: float) -> None:
        """As a cloud that announces that it takes the node away."""
        gcs.drain(self.address, self.id_of(node), deadline_s)

    def terminate(self, node: Node) -> None:
        """As Kubernetes does it: SIGTERM to ``ray start --block``, which drains."""
        os.kill(node.pod.command, signal.SIGTERM)
