"""What the SuperLink holds in memory: of pieces that have passed, and of its database."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

sys.path.insert(0, str(Path(__file__).parent))

from coordinator import Hospital, make_home, make_hospital, public_client, superlink

from medfed.server.federation.control import ControlClient
from medfed.server.federation.database import hold_little
from medfed.server.federation.home import FederationHome

NUM_SITES, NUM_PIECES, PIECE_BYTES = 16, 5, 5_000_000
# Four pieces in Flower's hands, several times over each, and the garbage of three or four more: 18
# to 20 pieces' worth, measured. Held until Python looks for garbage by itself, it was 69.
MOST_BYTES = 40 * PIECE_BYTES


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def push(home: FederationHome, run: int, site: Hospital, node: int) -> list[int]:
    """Push pieces to a run that waits for its start; return the answers."""
    content = os.urandom(PIECE_BYTES)
    piece = PushObjectRequest(run_id=run, object_id="a" * 64, object_content=content)
    piece.node.node_id = node
    body = piece.SerializeToString()
    with public_client(home) as client:
        return [
            client.post(
                "/v1/fleet/push-object", content=body, headers=site.headers(), timeout=300
            ).status_code
            for _ in range(NUM_PIECES)
        ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_superlink_holds_a_few_pieces_when_many_sites_send_at_once(tmp_path: Path) -> None:
    home = make_home(tmp_path / "federation")
    sites = [make_hospital(f"site-{number:02d}") for number in range(NUM_SITES)]
    for site in sites:
        site.record(home, "approved")
    with superlink(home) as process, ThreadPoolExecutor(NUM_SITES) as threads:
        control = ControlClient(home)
        nodes = [control.register_node(site.line, site.name) for site in sites]
        run = control.start_run(tmp_path / "arm")
        control.close()
        before = peak_bytes(process.pid)
        answers = list(threads.map(partial(push, home, run), sites, nodes))
        grown = peak_bytes(process.pid) - before
    # The gate says no 403: Flower has read each of them, and found that the run has not begun.
    assert answers == [[403] * NUM_PIECES] * NUM_SITES
    assert grown < MOST_BYTES


def test_database_has_connections_that_hold_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", SQLITE_PRAGMAS)  # put back at the end
    hold_little()
    store = SqlObjectStore(str(tmp_path / "state.db"))
    store.initialize()
    held = {name: store.query(f"PRAGMA {name}")[0][name] for name in ("cache_size", "mmap_size")}
    assert held == {"cache_size": -2000, "mmap_size": 0}
    # All else is as Flower wants it.
    assert store.query("PRAGMA journal_mode") == [{"journal_mode": "wal"}]
    assert store.query("PRAGMA foreign_keys") == [{"foreign_keys": 1}]
