"""Who does not belong to the federation gets nowhere: wrong keys, certificates, invites, replays.

The coordinator and one site, scanner-3, are real processes; two more sites have no data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from attacks import Impostor, Pair, Signed, certificate, public_client, write_study
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deployment import Deployment
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from wicked import Member, light_federation, light_site, members

from medfed.common.enrolment import (
    ENROLL,
    LEAVE,
    STATE,
    Action,
    EnrolRequest,
    make_enrol_request,
    make_site_request,
)
from medfed.common.invite import Invite
from medfed.server.federation.fleet_requests import FLEET_PATHS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REAL = "scanner-3"
LIGHT = ("scanner-1", "scanner-2")
ACTIVATE = "/v1/fleet/activate-node"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("attacks")
    with light_federation(folder, *LIGHT) as deployed:
        study = write_study(folder, "short", rounds=4)
        deployed.medfed("data", "trial", study, "--out", folder / "hospitals")
        deployed.enrol({REAL: folder / "hospitals" / REAL})
        deployed.start_site(REAL)
        yield deployed


def rejections(deployed: Deployment) -> list[dict[str, str]]:
    path = deployed.home / "superlink" / "rejections.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def invite_for(deployed: Deployment, site: str) -> Invite:
    return Invite.from_text(deployed.medfed("federation", "invite", site).splitlines()[0])


def activation(signed: Signed) -> bytes:
    request = ActivateNodeRequest(public_key=signed.public, heartbeat_interval=30)
    return bytes(request.SerializeToString())


# Keys


def member(deployed: Deployment, site: str = LIGHT[0]) -> Signed:
    return Signed(deployed, deployed.sites[site] / "keys" / "node.key")


def test_unknown_key_opens_no_path(federation: Deployment) -> None:
    with Signed(federation) as stranger:
        for path in sorted(FLEET_PATHS):
            answer = stranger.post(path, activation(stranger))
            assert (answer.status_code, answer.content) == (401, b""), path
        for path in ("/v1/fleet/register-node", "/v1/fleet/unregister-node"):
            assert stranger.post(path, activation(stranger)).status_code == 404
    assert "unknown node key" in {line["reason"] for line in rejections(federation)}


def test_known_key_without_its_signature_opens_no_path(federation: Deployment) -> None:
    with Signed(federation) as stranger, member(federation) as known:
        shown = {FLEET_HTTP_PUBLIC_KEY_HEADER: known.headers()[FLEET_HTTP_PUBLIC_KEY_HEADER]}
        for path in sorted(FLEET_PATHS):
            answer = stranger.post(path, activation(known), {**stranger.headers(), **shown})
            assert (answer.status_code, answer.content) == (401, b""), path


def test_member_cannot_act_as_another_member(federation: Deployment) -> None:
    nodes = json.loads((federation.home / "superlink" / "nodes.json").read_text())["nodes"]
    with member(federation) as known:
        for path, body in bodies_of(nodes[LIGHT[1]]["node_id"]).items():
            answer = known.post(path, body)
            assert answer.status_code in (400, 401), (path, answer.status_code, answer.text)


def bodies_of(node_id: int) -> dict[str, bytes]:
    """Requests in the name of a node, by path."""
    node = Node(node_id=node_id)
    requests = {
        "deactivate-node": DeactivateNodeRequest(node_id=node_id),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "pull-messages": PullMessagesRequest(node=node),
        "push-messages": PushMessagesRequest(node=node),
        "get-run": GetRunRequest(node=node, run_id=1),
        "get-fab": GetFabRequest(node=node, run_id=1),
        "push-object": PushObjectRequest(node=node, run_id=1),
        "pull-object": PullObjectRequest(node=node, run_id=1),
        "confirm-message-received": ConfirmMessageReceivedRequest(node=node, run_id=1),
    }
    return {f"/v1/fleet/{name}": bytes(r.SerializeToString()) for name, r in requests.items()}


@pytest.mark.parametrize(
    ("kind", "words"), [("enrolled", "not yet approved"), ("other key", "does not accept")]
)
def test_agent_without_an_approved_key_says_so(
    kind: str, words: str, federation: Deployment
) -> None:
    name = f"stranger-{kind.replace(' ', '-')}"
    folder = light_site(federation, name)
    invite = federation.folder / f"{name}.invite"
    federation.medfed("federation", "invite", name, "--out", invite)
    federation.medfed("site", "enroll", invite, folder / "site.toml")
    if kind == "other key":
        federation.medfed("federation", "approve", name, "--yes")
        (folder / "keys" / "node.key").unlink()
        write_key(folder / "keys" / "node.key")
    federation.sites[name] = folder
    try:
        federation.start_site(name)
        federation.wait_for(words, lambda: words in federation.site_status(name).get("reason", ""))
        assert federation.site_status(name)["state"] == "connecting"
        # Between its tries it says so; while it tries, that it does.
        federation.wait_for(
            "the status", lambda: "not yet approved" in shown_status(federation, name)
        )
        checked = " ".join(
            federation.medfed("site", "preflight", folder / "site.toml", check=False).split()
        )
        assert "failed membership" in checked
    finally:
        end_site(federation, name)
    if kind == "enrolled":
        assert "the site is enrolled" in {line["reason"] for line in rejections(federation)}


def shown_status(federation: Deployment, name: str) -> str:
    said = federation.medfed("site", "status", federation.sites[name] / "site.toml", check=False)
    return " ".join(said.split())


def end_site(federation: Deployment, name: str) -> None:
    agent = federation.processes.pop(f"site-{name}")
    agent.terminate()
    agent.wait(60)
    del federation.sites[name]


def write_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)


# Certificates


def impostor_pair(federation: Deployment, kind: str) -> Pair:
    if kind == "another authority":
        return certificate(certificate(None))
    pki = federation.home / "pki"
    authority = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate((authority, key), ends_in_days=-1)


@pytest.mark.parametrize(
    ("kind", "words"), [("another authority", "authority"), ("expired", "expired")]
)
def test_site_tells_nothing_to_a_server_with_the_wrong_certificate(
    kind: str, words: str, federation: Deployment
) -> None:
    name = f"careful-{words}"
    folder = light_site(federation, name)
    invite = invite_for(federation, name)
    with Impostor(federation.folder / kind, impostor_pair(federation, kind)) as impostor:
        # Somebody else answers at the address that the invite names.
        redirected = invite.model_copy(update={"address": impostor.address})
        (folder / "invite").write_text(redirected.to_text())
        said = federation.medfed(
            "site", "enroll", folder / "invite", folder / "site.toml", check=False
        )
        assert "certificate" in said
        assert not (folder / "keys" / "ca.pem").exists()
        # Or later, to a site that has enrolled.
        (folder / "invite").write_text(invite.to_text())
        federation.medfed("site", "enroll", folder / "invite", folder / "site.toml")
        federation.medfed("federation", "approve", name, "--yes")
        file = folder / "site.toml"
        file.write_text(file.read_text().replace(invite.address, impostor.address))
        assert impostor.address in file.read_text()
        said = federation.medfed("site", "preflight", file, check=False)
        assert "failed    certificate" in said
        assert words in said
        federation.sites[name] = folder
        try:
            federation.start_site(name)
            federation.wait_for(
                "the site to notice",
                lambda: "certificate" in federation.site_status(name).get("reason", ""),
            )
            federation.wait_for(
                "its SuperNode to try", lambda: "ertificate" in supernode_log(folder)
            )
            assert federation.site_status(name)["state"] == "connecting"
        finally:
            end_site(federation, name)
        assert impostor.num_connections >= 4
        assert impostor.heard == []


def supernode_log(folder: Path) -> str:
    path = folder / "state" / "agent" / "logs" / "supernode.log"
    return path.read_text() if path.exists() else ""


# Invites


def test_stolen_invite_is_of_no_use_once_it_was_used_and_its_theft_is_shown(
    federation: Deployment,
) -> None:
    invite = federation.folder / "victim.invite"
    federation.medfed("federation", "invite", "victim", "--out", invite)
    victim, thief = (light_site(federation, name) for name in ("victim", "thief"))
    (thief / "site.toml").write_text((victim / "site.toml").read_text())
    federation.medfed("site", "enroll", invite, victim / "site.toml")
    said = federation.medfed("site", "enroll", invite, thief / "site.toml", check=False)
    assert "used already" in " ".join(said.split())
    assert "telephone" in said
    listed = json.loads(federation.medfed("federation", "sites", "--json"))
    [record] = [record for record in listed if record["name"] == "victim"]
    assert "stolen" in record["note"]
    # And if the thief was first, the fingerprints differ: the real site is not let in by mistake.
    approved = federation.medfed(
        *("federation", "approve", "victim", "--fingerprint", "-".join(["0000"] * 6)), check=False
    )
    assert "not approved" in " ".join(approved.split())


def test_invite_is_good_for_the_site_that_it_names(federation: Deployment) -> None:
    invite = federation.folder / "named.invite"
    federation.medfed("federation", "invite", "named", "--out", invite)
    other = light_site(federation, "other")
    said = federation.medfed("site", "enroll", invite, other / "site.toml", check=False)
    assert "one for named" in " ".join(said.split())
    # Whoever speaks the protocol himself does not fare better.
    made = Invite.from_text(invite.read_text())
    for site in ("other", LIGHT[0]):
        answer = desk(federation, ENROLL, enrol_request(made, site))
        assert (answer.status_code, answer.json()["error"]) == (403, "refused")
    assert not (federation.home / "sites" / "other.json").exists()


def test_changed_invite_is_noticed(federation: Deployment) -> None:
    made = invite_for(federation, "changed")
    other = certificate(None)[0].public_bytes(serialization.Encoding.PEM).decode()
    for change in ({"coordinator": "ab" * 32}, {"ca": other}):
        answer = desk(federation, ENROLL, enrol_request(made.model_copy(update=change), "changed"))
        assert (answer.status_code, answer.json()["error"]) == (400, "changed")


def enrol_request(invite: Invite, site: str) -> dict[str, Any]:
    key = ec.generate_private_key(ec.SECP384R1())
    return enrol_with(invite, site, key).model_dump()


def enrol_with(invite: Invite, site: str, node_key: ec.EllipticCurvePrivateKey) -> EnrolRequest:
    return make_enrol_request(
        site=site,
        token=invite.token,
        coordinator=invite.coordinator,
        ca=invite.ca.encode(),
        version="1.0",
        node_key=node_key,
        ledger_key=Ed25519PrivateKey.generate(),
    )


def desk(deployed: Deployment, path: str, table: dict[str, Any]) -> httpx.Response:
    with public_client(deployed) as client:
        return client.post(path, json=table)


# Replays


def test_signed_request_of_a_site_is_heard_once_and_for_one_purpose(
    federation: Deployment,
) -> None:
    invite = invite_for(federation, "replayed")
    key = ec.generate_private_key(ec.SECP384R1())
    enrolment = enrol_with(invite, "replayed", key).model_dump()
    assert desk(federation, ENROLL, enrolment).status_code == 200
    assert desk(federation, ENROLL, enrolment).json()["error"] == "repeated"

    def asked(action: Action) -> dict[str, Any]:
        return make_site_request(
            action, site="replayed", coordinator=invite.coordinator, node_key=key
        ).model_dump()

    state = asked("state")
    assert desk(federation, STATE, state).json()["state"] == "enrolled"
    assert desk(federation, STATE, state).json()["error"] == "repeated"
    # What asks for the state is no word of leaving, whoever passes it on.
    assert desk(federation, LEAVE, asked("state")).json()["error"] == "refused"
    late = {**asked("state"), "time": "2024-10-01T00:00:00.000000+00:00"}
    assert desk(federation, STATE, late).json()["error"] == "clock"
    leave = asked("leave")
    assert desk(federation, LEAVE, leave).json()["state"] == "left"
    assert desk(federation, ENROLL, enrolment).json()["error"] == "refused"


def test_fleet_request_that_was_recorded_is_of_no_use_later(federation: Deployment) -> None:
    with member(federation) as known:
        for age_s in (400, 86400, -60):
            answer = known.post(ACTIVATE, activation(known), known.headers(age_s))
            assert (answer.status_code, answer.content) == (401, b""), age_s
    stale = [line for line in rejections(federation) if "clock differs" in line["reason"]]
    assert {line["site"] for line in stale} == {LIGHT[0]}


# Revocation


def test_revoked_site_is_shut_out_at_once_and_the_run_goes_on(federation: Deployment) -> None:
    study = write_study(federation.folder, "long", rounds=5)
    site_file = federation.sites[REAL] / "site.toml"
    federation.wait_for("the real site", lambda: federation.is_ready(REAL), 180)
    with members(*(Member(federation, name) for name in LIGHT)):
        arm = federation.submit(study, "revoking")
        federation.wait_for("a round", lambda: any(map(has_trained, rounds_of(arm))), 240)
        federation.medfed("federation", "revoke", REAL)
        federation.wait_for_run("revoking")
    rounds = rounds_of(arm)
    assert len(rounds) == 5
    assert not has_trained(rounds[-1])
    for record in rounds:
        assert [record["sites"][name]["status"] for name in LIGHT] == ["ok", "ok"]
    federation.wait_for(
        "a refusal",
        lambda: (
            (REAL, "the site is revoked")
            in {(line["site"], line["reason"]) for line in rejections(federation)}
        ),
    )
    # Its people are told.
    federation.wait_for("the agent", lambda: federation.site_status(REAL)["state"] == "connecting")
    federation.wait_for("the status", lambda: "or revoked" in shown_status(federation, REAL))
    # It cannot come back: not with its key, not by starting anew, not with its old invite.
    with member(federation, REAL) as known:
        assert known.post(ACTIVATE, activation(known)).status_code == 401
    federation.kill(f"site-{REAL}")
    federation.start_site(REAL)
    federation.wait_for("the agent", lambda: "revoked" in federation.site_status(REAL)["reason"])
    said = federation.medfed(
        "site", "enroll", federation.folder / f"invite-{REAL}", site_file, check=False
    )
    assert "revoked" in said


def rounds_of(arm: Path) -> list[dict[str, Any]]:
    path = arm / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def has_trained(record: dict[str, Any]) -> bool:
    return bool(record["sites"].get(REAL, {}).get("weight"))
