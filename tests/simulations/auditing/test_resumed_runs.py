"""Runs that really stopped in the middle of a round and went on: the audit finds nothing wrong."""

import json
from pathlib import Path

import pytest

import medfed.server.loop as loop
from medfed.simulations.auditing.audit import run_audit
from medfed.simulations.auditing.findings import Status
from medfed.simulations.auditing.ledger_part import audit_run_ledgers
from medfed.simulations.study import Options, run_study

from .conftest import Prepare
from .ledger_forgery import read

DELTA = 1e-3
CHARGED = "every training was charged"

pytestmark = pytest.mark.slow


class PowerCutError(Exception):
    """Stands for whatever stops the server."""


def run_with_a_stop(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after round 2 was trained, charged and countersigned, before it is on disk; resume."""
    real = loop.save_checkpoint

    def stop(folder: Path, checkpoint: loop.Checkpoint, digest: str) -> None:
        if checkpoint.record.round_number == 2:
            raise PowerCutError
        real(folder, checkpoint, digest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(PowerCutError):
            run_study(run, Options(workers=1))
    run_study(run, Options(workers=1))


def draw_secure_noise(run: Path) -> None:
    arm = run / "arms" / "federated"
    for site in (arm / "sites").glob("*/site.toml"):
        site.write_text(site.read_text().replace("seeded_noise = true", "seeded_noise = false"))
    plan = json.loads((arm / "plan.json").read_text())
    (arm / "plan.json").write_text(json.dumps({**plan, "seeded_noise": False}))


def charged(state: Path) -> list[int]:
    return [entry["event"]["round_number"] for entry in read(state)]


# Which ledgers charge a round anew: each that vouches for noise which is drawn anew. A site's own
# is not: asked again, it sends the update that it paid for (ADR 16), unless the round's masks and
# noise are shared with other sites.
@pytest.mark.parametrize(
    ("kind", "secure", "at_sites", "at_server"),
    [
        ("patients", False, [1, 2, 3], None),
        ("patients", True, [1, 2, 3], None),
        ("site level", False, None, [1, 2, 3]),
        ("site level", True, None, [1, 2, 2, 3]),
        ("shared noise", False, [1, 2, 3], [1, 2, 3]),
        ("shared noise", True, [1, 2, 2, 3], [1, 2, 2, 3]),
        ("no privacy", False, None, None),
    ],
)
def test_resumed_run_passes(
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    secure: bool,
    at_sites: list[int] | None,
    at_server: list[int] | None,
):
    run = prepare(kind)
    if secure:
        draw_secure_noise(run)
    run_with_a_stop(run, monkeypatch)
    arm = run / "arms" / "federated"
    if at_sites is not None:
        assert charged(arm / "sites" / "scanner-1" / "state") == at_sites
    if at_server is not None:
        assert charged(arm / "server_state") == at_server
    result = audit_run_ledgers(run, delta=DELTA)
    assert [f.detail for f in result.findings if f.status is Status.FAIL] == []
    twice = [f.detail for f in result.findings if "charged more than once" in f.detail]
    assert bool(twice) == ([1, 2, 2, 3] in (at_sites, at_server))
    if kind == "no privacy":
        assert "there is no privacy claim to check" in run_audit(run, ["ledger"]).verdict


def test_round_repeated_with_seeded_noise_has_a_later_entry_as_its_head(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
):
    """The server lost its disk after the last round: all rounds again, none charged again."""
    run = prepare("patients")
    run_study(run, Options(workers=1))
    arm = run / "arms" / "federated"
    for path in (*(arm / "checkpoint").iterdir(), arm / "outcome.json"):
        path.unlink()
    run_study(run, Options(workers=1))
    assert charged(arm / "sites" / "scanner-1" / "state") == [1, 2, 3]
    heads = [json.loads(line) for line in (arm / "heads.jsonl").read_text().splitlines()]
    last = read(arm / "sites" / "scanner-1" / "state")[-1]["hash"]
    signed = {h["round_number"] for h in heads if h["site"] == "scanner-1" and h["head"] == last}
    assert signed == {1, 2, 3}
    result = audit_run_ledgers(run, delta=DELTA)
    assert [f.detail for f in result.findings if f.status is Status.FAIL] == []
