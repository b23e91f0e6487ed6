"""Sites without data, honest or not. A reply may be anything that Flower's Fleet API carries."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from deployment import Deployment, deployment
from fake_site import FakeSite
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from medfed.client.agent.enrol import enroll
from medfed.common import messages
from medfed.common.messages import EvaluateReply, JoinReply, Reply, TrainReply
from medfed.common.models import build_model
from medfed.common.state_dicts import StateDict, digest, read_state
from medfed.common.study_file import load_study
from medfed.server.aggregation.choice import make_rule
from medfed.server.federation.home import load_home
from medfed.server.federation.membership import approve_site, invite_site
from medfed.server.federation.registry import Registry

SITES = ("scanner-1", "scanner-2", "scanner-3")


@dataclass(frozen=True)
class Part:
    """A piece of a message as it travels: its kind, what it says, and the pieces that it names."""

    kind: str
    body: bytes
    children: tuple["Part", ...] = ()

    @classmethod
    def holding(cls, kind: str, named: Mapping[str, "Part"]) -> "Part":
        """Return a piece that names others, as records do."""
        table = {name: part.object_id for name, part in named.items()}
        return cls(kind, json.dumps(table).encode(), tuple(named.values()))

    def deflate(self) -> bytes:
        """Return its bytes."""
        names = ",".join(child.object_id for child in self.children)
        return f"{self.kind} {names} {len(self.body)}".encode() + b"\0" + self.body

    @property
    def object_id(self) -> str:
        """Its hash, under which it is announced."""
        return hashlib.sha256(self.deflate()).hexdigest()

    def tree(self) -> ObjectTree:
        """Return the announcement."""
        return ObjectTree(
            object_id=self.object_id, children=[child.tree() for child in self.children]
        )

    def all(self) -> dict[str, bytes]:
        """Return the bytes of this and all pieces below, by hash."""
        found = {self.object_id: self.deflate()}
        for child in self.children:
            found |= child.all()
        return found


@dataclass(frozen=True)
class Crafted:
    """A reply that is announced as one and consists of something else.

    Attributes:
        reply: What is announced.
        content: Stands in for its content.
        root: Stands in for the whole.
        inner: The metadata that the message itself states; None for the announced.
        is_sent: Whether anything follows the announcement.
    """

    reply: Message
    content: Part | None = None
    root: Part | None = None
    inner: Message | None = None
    is_sent: bool = True

    def parts(self) -> Part:
        """Return what is sent."""
        if self.root is not None:
            return self.root
        _, _, body = (self.inner or self.reply).deflate().partition(b"\0")
        return Part("Message", body, (self.content,) if self.content else ())


def zeros(num_bytes: int) -> Part:
    """An array of zeros that names one piece as often as it takes."""
    piece = 5_000_000
    table = {
        "dtype": "uint8",
        "shape": [num_bytes],
        "stype": "numpy.ndarray",
        "arraychunk_ids": [0] * (num_bytes // piece),
    }
    return Part("Array", json.dumps(table).encode(), (Part("ArrayChunk", bytes(piece)),))


Replies = Sequence[Message | Crafted]


class Member(FakeSite):
    """An approved site that sends any number of replies to a message, or none.

    Args:
        deployed: The federation that it belongs to.
        site: Its name there.
        answer: Makes the replies; None for an honest site.
    """

    def __init__(
        self, deployed: Deployment, site: str, answer: Callable[[Message], Replies] | None = None
    ) -> None:
        folder = deployed.sites[site]
        super().__init__(
            f"127.0.0.1:{deployed.port}",
            folder / "keys" / "ca.pem",
            folder / "keys" / "node.key",
            answer or (lambda asked: [packed(honest_reply(site, asked), asked)]),  # type: ignore[arg-type,return-value]
        )

    def _send(self, replies: Replies, send: Any, push: Any) -> None:  # type: ignore[override]
        for reply in replies:
            # One that is turned away does not keep the next from being sent.
            with contextlib.suppress(httpx.HTTPStatusError):
                self._send_one(reply, send, push)

    @staticmethod
    def _send_one(reply: Message | Crafted, send: Any, push: Any) -> None:
        if isinstance(reply, Message):
            FakeSite._send(reply, send, push)
        else:
            root, run = reply.parts(), reply.reply.metadata.run_id
            reply.reply.metadata.__dict__["_message_id"] = root.object_id
            wanted, session = send(reply.reply, root.tree(), 0.0)
            for name, content in root.all().items():
                if name in wanted and reply.is_sent:
                    push(run, session, name, content)


def honest_update(site: str, weights: StateDict) -> StateDict:
    """What an honest site without data sends: one step that its name alone decides."""
    step = 0.001 * (1 + SITES.index(site))
    return {name: np.full_like(array, step) for name, array in weights.items()}


def honest_reply(site: str, asked: Message) -> Reply:
    """What an honest site without data answers."""
    kind = asked.metadata.message_type
    if kind == messages.TRAIN:
        return TrainReply(
            site=site,
            update=honest_update(site, messages.unpack_model_request(asked.content).weights),
            num_examples=10,
            loss=1.0,
            epsilon=None,
            noise="none",
        )
    if kind == messages.EVALUATE:
        return EvaluateReply(site=site, sums={"count": np.array(7), "correct": np.array(3)})
    assert kind == messages.JOIN, kind
    return JoinReply(site=site, public_num_patients=None)


def honest_digests(study: Path, num_rounds: int, sites: Sequence[str]) -> list[str]:
    """Work out the model after each round that only such sites take part in."""
    config = load_study(study)
    weights = read_state(build_model(config, len(config.task.classes)))
    digests = []
    for _ in range(num_rounds):
        rule = make_rule(config.aggregation, weights)
        for site in sites:
            rule.add(honest_update(site, weights), 10, site)
        weights = rule.apply()
        digests.append(digest(weights))
    return digests


def packed(reply: Reply, asked: Message) -> Message:
    """Return a reply as a message."""
    pack: dict[type, Callable[[Any], RecordDict]] = {
        TrainReply: messages.pack_train_reply,
        EvaluateReply: messages.pack_evaluate_reply,
        JoinReply: messages.pack_join_reply,
    }
    return Message(pack[type(reply)](reply), reply_to=asked)


@contextlib.contextmanager
def members(*sites: Member) -> Iterator[None]:
    """Have sites connected for the time of the block."""
    with contextlib.ExitStack() as stack:
        for site in sites:
            stack.enter_context(site)
        for site in sites:
            assert site.connected.wait(120)
        yield


def light_site(deployed: Deployment, site: str) -> Path:
    """Return the folder of a site without data."""
    folder = deployed.folder / "light" / site
    folder.mkdir(parents=True)
    (folder / "site.toml").write_text(f'name = "{site}"\n[data]\nstores = ["none"]\n')
    return folder


def join(deployed: Deployment, *sites: str) -> None:
    """Have sites without data enrol, and approve them; as their people and ours would."""
    home = load_home(deployed.home)
    for site in sites:
        folder = light_site(deployed, site)
        enrolled = enroll(folder / "site.toml", invite_site(home, site, 1))
        approve_site(Registry(home.sites_folder), site, enrolled.fingerprint)
        deployed.sites[site] = folder
    # Flower ends the whole process of a node that it does not know.
    deployed.wait_for("registration", lambda: set(sites) <= registered(deployed))


def registered(deployed: Deployment) -> set[str]:
    """Return the sites that Flower knows."""
    try:
        return set(json.loads((deployed.home / "superlink" / "nodes.json").read_text())["nodes"])
    except (OSError, ValueError):
        return set()


@contextlib.contextmanager
def light_federation(folder: Path, *sites: str, **settings: float) -> Iterator[Deployment]:
    """A running coordinator whose sites have no data; `settings` go into federation.toml."""
    with deployment(folder) as deployed:
        deployed.found()
        config = deployed.home / "federation.toml"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        kept = [
            line for line in config.read_text().splitlines() if line.split(" ")[0] not in settings
        ]
        config.write_text("\n".join([*lines, *kept]) + "\n")
        deployed.start_coordinator()
        join(deployed, *sites)
        yield deployed
