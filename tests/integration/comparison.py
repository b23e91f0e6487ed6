"""What a run must have in common with another that differs only in where it ran."""

import hashlib
import json
from pathlib import Path
from typing import Any

from medfed.common.ledger import Ledger


def facts(run: Path) -> dict[str, Any]:
    """Everything about a federated arm that a grid must not change; times are left out."""
    arm = run / "arms" / "federated"
    outcome = json.loads((arm / "outcome.json").read_text())
    found: dict[str, Any] = {
        "outcome": (outcome["state"], outcome["reason"]),
        "model.safetensors": _sha256(arm / "model.safetensors"),
        "final_sums": json.loads((arm / "final_sums.json").read_text()),
        "plan": json.loads((arm / "plan.json").read_text()),
    }
    if (arm / "vocabulary.json").exists():
        found["vocabulary"] = json.loads((arm / "vocabulary.json").read_text())
    if (arm / "statistics.json").exists():
        found["statistics"] = json.loads((arm / "statistics.json").read_text())
    for line in (arm / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["started"], record["seconds"]
        for site in record["sites"].values():
            del site["seconds"]
        found[f"round {record['round_number']}"] = record
    for kept in sorted((arm / "sites").glob("*/state/personal/*/*")):
        found[f"{kept.name} of {kept.parents[3].name}"] = _sha256(kept)
    for ledger in sorted((arm / "sites").glob("*/state/ledger.jsonl")):
        spends = [entry.spend for entry in Ledger(ledger.parent).entries()]
        found[f"ledger of {ledger.parent.parent.name}"] = spends
    return found


def differences(run: Path, other: Path) -> list[str]:
    """Names of the facts that differ between two runs."""
    ours, theirs = facts(run), facts(other)
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
