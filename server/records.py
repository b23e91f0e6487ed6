"""What a run leaves behind, arm by arm. A report is rebuilt from these files alone.

<arm folder>/
    plan.json        RunPlan: run identifier, arm, who trains and who evaluates
    study.json       the study as this arm runs it
    events.jsonl     what happened, line by line, while it happened: live progress reads it
    statistics.json  what each site said of its training data, if the study asks
    rounds.jsonl     one RoundRecord a completed round
    heads.jsonl      the countersigned heads of the sites' ledgers
    server_state/    the server's key, and its ledger under site-level privacy; never shared
    checkpoint/      state.json (with the last round's record) and the weights after it
    final_sums.json  metric sums of the last evaluation, of all sites that released the same
    model.safetensors  the final global weights (with federation.ema_decay, their average); with
                      fedbn, normalisations as they were before the first round: sites keep theirs
    outcome.json     finished or failed, and why
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medfed.common.errors import RunError
from medfed.common.files import read_json, to_disk, write_atomically, write_json

STATISTICS_FILE = "statistics.json"

SiteStatus = Literal["ok", "refused", "failed", "late", "rejected", "away", "lost", "training"]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Who takes part in one arm.

    Attributes:
        run: Identifier of the run; ledgers name it.
        arm: federated, pooled, or local-<site>.
        min_sites: Quorum of the round.
        expected_sites: Wait for so many sites to join, until the join timeout.
        train_sites: Names of the sites that train; None for all.
        evaluate_sites: Names of the sites that evaluate; None for all.
        seeded_noise: Draw and noise of site-level privacy come from the study's seed: a
            simulation, not private.
        server_state: Folder of the server's ledger and key; empty for the arm's own. In a
            deployment one for all runs, so that they compose.
        rejections: File in which the coordinator's gate lists what it turned away; empty without.
        note: What this arm leaves out of the study, for the report.
        virtual_seconds: In a simulation with fedbuff, the median time of a training by site, 1 for
            others; None where updates count as they come.
        virtual_sigma: Standard deviation of its logarithm.
    """

    run: str
    arm: str = "federated"
    min_sites: int = 2
    expected_sites: int = 2
    train_sites: tuple[str, ...] | None = None
    evaluate_sites: tuple[str, ...] | None = None
    seeded_noise: bool = False
    server_state: str = ""
    rejections: str = ""
    note: str = ""
    virtual_seconds: dict[str, float] | None = None
    virtual_sigma: float = 0.0


@dataclass(kw_only=True)
class SiteRound:
    """One site in one round.

    Attributes:
        status: ok; refused by the site's policy; failed; late (no answer by the deadline);
            rejected by screening, or by the gate in front of the server; away (not connected when
            the round began, so not asked); lost (disconnected while it was waited for); training
            (with fedbuff, not waited for: its update is for a later round).
        reason: Code or message for anything but ok.
        bytes_down: Size of what the site was sent, training and evaluation.
        bytes_up: Size of what the site sent back.
        update_bytes: Of these, what it took until its update counted; the rest are figures of
            evaluation.
        weight: Weight in the mean.
        loss: Mean training loss; None under DP.
        epsilon: Spent by the site's data set so far; None without DP.
        noise: secure, seeded or none.
        seconds: From asking to the answer (with fedbuff, from the round's beginning), as the server
            sees it. A site states no time of its own: under DP it would tell of the patients that
            were sampled.
        metrics: Figures on the site's held-out images, if it released them.
        global_metrics: The same of the global model, where `metrics` are of a personal one.
        ignored: What else came in its name and was not used: duplicates, replays, forgeries.
        correction_sha256: With scaffold, digest of the correction that it was sent: an auditor
            compares it with the release in its ledger.
        start_sha256: With cyclic, the same of the weights that it was sent; with split, of those of
            its own parts.
        asked_in: With fedbuff, the round in which it was asked for this update; 0 without.
    """

    status: SiteStatus
    reason: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    update_bytes: int = 0
    weight: int = 0
    loss: float | None = None
    epsilon: float | None = None
    noise: str = "none"
    seconds: float = 0.0
    metrics: dict[str, float] | None = None
    global_metrics: dict[str, float] | None = None
    ignored: list[str] = field(default_factory=list)
    correction_sha256: str = ""
    start_sha256: str = ""
    asked_in: int = 0


@dataclass(kw_only=True)
class RoundRecord:
    """One completed round.

    Attributes:
        round_number: 1-based.
        started: UTC, ISO 8601.
        seconds: Wall time of the round, evaluation included.
        sites: By name, sorted.
        metrics: Figures over all sites' held-out images together; None if not evaluated.
        global_metrics: The same of the global model, where `metrics` are of each site's own.
        weights_sha256: `common.state_dicts.digest` of the new global weights, from which the sites
            go on.
        average_sha256: The same of their moving average, which was evaluated; empty without.
        site_epsilon: What the sites of the federation have spent so far, per site; None unless
            privacy.unit is "site".
        site_noise: secure, seeded or none: where the server's noise came from.
        update_bound: The bound on an update's norm in this round; None unless the server clips.
        order: With cyclic, the sites that trained, in turn; with fedbuff, as their updates came.
        under_way: With fedbuff, by site that was still training, the round in which it was asked.
        clock_s: With fedbuff in a simulation, the virtual time when the round was complete.
    """

    round_number: int
    started: str
    seconds: float
    sites: dict[str, SiteRound] = field(default_factory=dict)
    metrics: dict[str, float] | None = None
    global_metrics: dict[str, float] | None = None
    weights_sha256: str = ""
    average_sha256: str = ""
    site_epsilon: float | None = None
    site_noise: str = "none"
    update_bound: float | None = None
    order: list[str] = field(default_factory=list)
    under_way: dict[str, int] = field(default_factory=dict)
    clock_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def round_from_dict(table: dict[str, Any]) -> RoundRecord:
    """Read a record back."""
    sites = {name: SiteRound(**values) for name, values in table["sites"].items()}
    return RoundRecord(**{**table, "sites": sites})


class ArmFolder:
    """Reads and writes one arm's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"

    def server_state(self, plan: RunPlan) -> Path:
        """Return the folder of the server's ledger and key."""
        return Path(plan.server_state) if plan.server_state else self.folder / "server_state"

    def write_plan(self, plan: RunPlan) -> None:
        """Write who takes part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "plan.json", asdict(plan))

    def read_plan(self) -> RunPlan:
        """Read who takes part."""
        table = read_json(self.folder / "plan.json")
        for key in ("train_sites", "evaluate_sites"):
            table[key] = None if table[key] is None else tuple(table[key])
        return RunPlan(**table)

    def emit(self, event: str, **values: Any) -> None:
        """Append one event. Not synced to disk: progress, not a record."""
        line = {"event": event, "time": now(), **values}
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_rounds(self) -> list[RoundRecord]:
        """Return the completed rounds, in order; a torn last line is left out."""
        path = self.folder / "rounds.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [round_from_dict(json.loads(line)) for line in lines]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise RunError(
                f"{path} is damaged ({error}). `medfed simulate --resume` writes it anew "
                "from the checkpoint."
            ) from None

    def rewrite_rounds(self, records: list[RoundRecord]) -> None:
        """Replace all round records, atomically."""
        text = "".join(json.dumps(record.to_dict()) + "\n" for record in records)
        write_atomically(self.folder / "rounds.jsonl", text.encode())

    def append_round(self, record: RoundRecord) -> None:
        """Append the record of a round that just completed, through to the disk."""
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_dict()) + "\n")
            file.flush()
            to_disk(file.fileno())

    def write_outcome(self, state: Literal["finished", "failed"], reason: str = "") -> None:
        """Write how the arm ended."""
        write_json(self.folder / "outcome.json", {"state": state, "reason": reason, "time": now()})

    def read_outcome(self) -> dict[str, str] | None:
        """Return how the arm ended, or None while it has not."""
        path = self.folder / "outcome.json"
        return dict(read_json(path)) if path.exists() else None


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
