"""What can be checked of sites whose ledgers are not here: the coordinator's own book of heads.

In a deployment a ledger never leaves its site. The coordinator has the heads that it signed; they
show no epsilon, but they bind both sides to what an auditor who gets a site's export will compare.
"""

import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from medfed.simulations.auditing.collecting import Check
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.run_ledgers import SERVER, ArmRecord, Table, moment
from medfed.simulations.auditing.verify_ledger import (
    CLOCK_TOLERANCE,
    COUNTERSIGNATURE,
    PURPOSE,
    canonical,
)

ABSENT = "ledgers at the sites"


def absent_sites(arm: ArmRecord) -> list[str]:
    """Return the sites of a deployed arm whose updates were used and whose ledger is not here."""
    if not arm.deployed:
        return []
    here = {name for name, _ in arm.state_folders()}
    sites = {site for record in arm.rounds.values() for site in record["sites"]}
    return sorted(site for site in sites - here if arm.released(site) and site != SERVER)


def check_absent(arm: ArmRecord) -> list[Finding]:
    """Check the signed heads of the sites whose ledgers are not here, and say how to get those."""
    absent = absent_sites(arm)
    if not absent:
        return []
    check = Check(
        "countersigned heads",
        "Every head carries a signature by one key of the coordinator, and was signed in its "
        "round; each round in which a site's update was used has one.",
    )
    keys = {str(head.get("public_key")) for head in arm.heads or ()}
    if len(keys) > 1:
        check.problems.append(f"{arm.name}: heads were signed with {len(keys)} keys.")
    for site in absent:
        heads = arm.signed(site)
        check.looked_at += len(heads)
        for head in heads:
            check.problems += [f"{arm.name}/{site}: {what}." for what in _wrong(arm, head)]
        signed = {head.get("round_number") for head in heads}
        missing = [str(n) for n in sorted(arm.used_in(site)) if n not in signed]
        # Without privacy a site need not keep a ledger.
        if missing and arm.study["privacy"]["unit"] != "none":
            check.problems.append(f"{arm.name}/{site}: no head for round {', '.join(missing)}.")
    detail = (
        f"The ledgers of {', '.join(absent)} are at the sites and were not checked: epsilon is as "
        "the sites stated it. To check one, ask the site for `medfed site ledger export SITE.toml "
        f"OUT`, put what it wrote into arms/{arm.name}/sites/SITE/state of this run folder, and "
        "audit again."
    )
    return [*check.findings("ledger"), Finding("ledger", ABSENT, Status.NOTE, detail)]


def _wrong(arm: ArmRecord, head: Table) -> list[str]:
    """Return what is wrong with one line of heads.jsonl, in words."""
    number = head.get("round_number")
    name = f"the head of round {number}"
    try:
        if set(head) != COUNTERSIGNATURE:
            raise ValueError(f"expected the fields {', '.join(sorted(COUNTERSIGNATURE))}")
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(head["public_key"]))
        body = {field: value for field, value in head.items() if field != "signature"}
        key.verify(bytes.fromhex(head["signature"]), PURPOSE + canonical(body))
        signed = moment(head["time"])
        assert isinstance(number, int)  # what was signed is what the coordinator wrote
    except InvalidSignature:
        return [f"{name} is not signed by the key that it names"]
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        return [f"{name} cannot be read ({error}): {json.dumps(head)[:80]}"]
    early, late = arm.earliest(number), arm.answered_by(head["site"], number)
    checks = {
        f"{name} is of another run, {head['run']}": head["run"] == arm.run,
        f"{name} was signed before it can have begun": (
            early is None or signed >= early - CLOCK_TOLERANCE
        ),
        f"{name} was signed after it was over": late is None or signed <= late + CLOCK_TOLERANCE,
    }
    return [what for what, right in checks.items() if not right]
