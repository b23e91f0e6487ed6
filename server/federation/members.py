"""Keeps Flower's list of nodes equal to the registry of sites."""

import logging
from typing import Any

from medfed.server.federation.control import ControlClient, FlowerNode, KeyInUseError, node_pem
from medfed.server.federation.registry import Registry, SiteRecord

_log = logging.getLogger(__name__)


class Members:
    """Registers approved sites with Flower, and takes away who is approved no longer.

    Attributes:
        problem: What a person must mend; empty if all is well.
    """

    def __init__(self, registry: Registry, control: ControlClient) -> None:
        self._registry = registry
        self._control = control
        self._used_up: set[str] = set()
        self.problem = ""

    def sync(self) -> list[FlowerNode]:
        """Make Flower's list equal to the registry; return the nodes of approved sites.

        Raises:
            RunError: The SuperLink cannot be asked.
            FederationError: A record is damaged: Flower's list stays as it is.
        """
        approved = {r.name: r for r in self._registry.records() if _may_connect(r)}
        kept: dict[str, FlowerNode] = {}
        for node in self._control.nodes():
            if node.status == "unregistered":
                continue
            record = approved.get(node.name)
            if record is not None and node_pem(record.node_key) == node.public_key:
                kept[node.name] = node
            elif not self._is_member(node):
                _log.info("Node %d of %s is taken off Flower's list", node.node_id, node.name)
                self._control.unregister_node(node.node_id)
        for name in sorted(set(approved) - set(kept)):
            self._register(approved[name])
        self._note_used_up(approved)
        return list(kept.values())

    def _is_member(self, node: FlowerNode) -> bool:
        """Look once more: Flower never takes a key again that it was told to forget."""
        record = self._registry.find(node.name)
        if record is None or not _may_connect(record):
            return False
        return node_pem(record.node_key) == node.public_key

    def _register(self, record: SiteRecord) -> None:
        if record.node_key in self._used_up:
            return
        try:
            node_id = self._control.register_node(record.node_key, record.name)
            _log.info("Site %s is Flower's node %d", record.name, node_id)
        except KeyInUseError:
            self._used_up.add(record.node_key)

    def _note_used_up(self, approved: dict[str, SiteRecord]) -> None:
        names = sorted(n for n, record in approved.items() if record.node_key in self._used_up)
        self.problem = (
            f"Flower knows the node key of {', '.join(names)} from a site that left, and takes a "
            "key once only. Revoke the site and invite it again: it then makes a new key."
            if names
            else ""
        )


def describe_nodes(nodes: list[FlowerNode]) -> dict[str, Any]:
    """Return `nodes.json`'s table of sites."""
    return {
        node.name: {
            "node_id": node.node_id,
            "online": node.status == "online",
            "last_seen": node.last_seen,
        }
        for node in sorted(nodes, key=lambda node: node.name)
    }


def _may_connect(record: SiteRecord) -> bool:
    return record.state == "approved" and bool(record.node_key)
