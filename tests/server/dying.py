"""Whole runs over a SuperLink's own bookkeeping whose sites can be made to die at any message."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message
from link import Killed, Link, Node

from medfed.client.app import app as client_app
from medfed.client.releases import read_releases
from medfed.client.site import SiteConfig, load_site
from medfed.common.ledger import Ledger
from medfed.common.study_file import load_study
from medfed.server.loop import run_study
from medfed.server.records import ArmFolder, RoundRecord
from medfed.simulations.study import Options, prepare_run, start_study

SITES = ("scanner-1", "scanner-2", "scanner-3")
STUDY = """
[study]
name = "tiny"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = 3
local_steps = 2
learning_rate = 0.1
[federation]
min_sites = 2
join_timeout_s = 30
rejoin_timeout_s = 30
round_timeout_s = 60
lost_after_s = 1
[privacy]
unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.3
images_per_patient = 2
target_delta = 1e-3
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
[simulation.phantom]
num_patients = 120
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""

Hook = Callable[[str, Message], None]


def prepare(folder: Path, *overrides: str) -> Path:
    """Make a run folder whose sites add real noise, and whose plan names no site.

    Args:
        folder: It is made in this, which is empty.
        overrides: Of the study.
    """
    (folder / "study.toml").write_text(STUDY)
    start_study(load_study(folder / "study.toml", overrides), folder / "tiny", None, Options())
    prepare_run(folder / "tiny")
    arm = ArmFolder(folder / "tiny" / "arms" / "federated")
    arm.write_plan(replace(arm.read_plan(), train_sites=None, evaluate_sites=None))
    for path in arm.folder.glob("sites/*/site.toml"):
        text = path.read_text()
        assert "allow_seeded_noise = true" in text
        path.write_text(text.replace("allow_seeded_noise = true", "allow_seeded_noise = false"))
    return folder / "tiny"


class Federation:
    """A run with its sites on a SuperLink."""

    def __init__(self, link: Link, run: Path) -> None:
        self.link = link
        self.run_folder = run
        self.arm = ArmFolder(run / "arms" / "federated")
        self.before: Hook = lambda site, message: None
        self.after: Hook = lambda site, message: None
        self.failed: list[BaseException] = []

    def add(self, *names: str) -> None:
        for name in names:
            site = self.arm.folder / "sites" / name / "site.toml"
            self.link.add(name, self._app(name), registered=name, site=str(site))

    def node(self, name: str) -> Node:
        return self.link.nodes[name]

    def run(self, **plan: object) -> None:
        study = load_study(self.run_folder / "study.toml")
        run_study(self.link.grid, study, replace(self.arm.read_plan(), **plan), self.arm)

    @property
    def records(self) -> list[RoundRecord]:
        return self.arm.read_rounds()

    def events(self, *kinds: str) -> list[dict[str, object]]:
        path = self.arm.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] in kinds]

    def site(self, name: str) -> SiteConfig:
        return load_site(self.arm.folder / "sites" / name / "site.toml")

    def charged(self, name: str) -> list[int]:
        entries = Ledger(self.site(name).state_folder).entries()
        return [entry.spend.round_number for entry in entries]

    def updates(self, name: str) -> list[tuple[int, bool]]:
        """Round, and whether it was sent again, of each update that left."""
        releases, _ = read_releases(self.site(name).state_folder)
        return [
            (r.round_number, any("sent again" in q.cost for q in r.quantities))
            for r in releases
            if r.kind == "update"
        ]

    def _app(self, name: str) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                self.before(name, message)
                reply = client_app(message, context)
                self.after(name, message)
            except Exception as error:
                self.failed.append(error)
                raise
            return reply

        return answer


def die(node: Node) -> None:
    node.kill()
    raise Killed


def once(kind: str, round_number: int, site: str, act: Callable[[], None]) -> Hook:
    """Act on the first message of this kind, round and site."""
    done = threading.Event()

    def hook(name: str, message: Message) -> None:
        about = (name, message.metadata.message_type, message.metadata.group_id)
        if about == (site, kind, str(round_number)) and not done.is_set():
            done.set()
            act()

    return hook


def statuses(records: list[RoundRecord], site: str) -> list[str]:
    return [record.sites[site].status if site in record.sites else "-" for record in records]


def first_updates(federation: Federation, site: str) -> list[int]:
    """Rounds of the updates that were not sent again.

    On a busy machine a heartbeat may be late, and a site be asked once more than it had to be.
    """
    return [number for number, again in federation.updates(site) if not again]
