"""The sentences that `medfed site log` and `status` are made of."""

from collections.abc import Mapping, Sequence
from typing import Literal

from medfed.client.audit_facts import REASONS, UNFIT, Fact
from medfed.client.audit_log import AuditEntry
from medfed.client.releases import Quantity, Release
from medfed.client.site import PolicySection
from medfed.common.ledger import Spend

Tone = Literal["plain", "good", "bad"]

_ASKED: Mapping[str, str] = {
    "join": "asked whether this site takes part in {what}",
    "words": "asked for words of reports for {what}",
    "statistics": "asked for statistics of the training data for {what}",
    "train": "asked to train {what}",
    "train.split_front": "asked for the next activations for {what}",
    "train.split_back": "asked for the gradient for its part of the network in {what}",
    "evaluate": "asked to evaluate {what}",
    "secure_keys": "asked for this site's public keys for {what}",
    "secure_shares": "asked to share the masks' secrets for {what}",
    "secure_reveal": "asked to unmask the sum of {what}",
}
_DOING: Mapping[str, str] = {
    "join": "saying whether it takes part in {what}",
    "words": "choosing words of reports for {what}",
    "statistics": "counting the training data for {what}",
    "train": "training {what}",
    "train.split_front": "training the first layers for {what}",
    "train.split_back": "training the last layer for {what}",
    "evaluate": "evaluating {what}",
    "secure_keys": "making keys for {what}",
    "secure_shares": "sharing the masks' secrets for {what}",
    "secure_reveal": "unmasking the sum of {what}",
}
_DONE: Mapping[str, str] = {
    "join": "Said that it takes part",
    "words": "Named words",
    "statistics": "Said what the training data are",
    "train": "Trained",
    "train.split_front": "Trained the first layers",
    "train.split_back": "Trained the last layer",
    "evaluate": "Evaluated",
    "secure_keys": "Made keys",
    "secure_shares": "Shared secrets, encrypted for the other sites",
    "secure_reveal": "Revealed what unmasks the sum, and that alone",
}
_EVENTS: Mapping[str, tuple[str, Tone]] = {
    "installed": ("Set up", "plain"),
    "enrolled": ("Enrolled at the coordinator", "good"),
    "started": ("Started", "plain"),
    "stopped": ("Stopped", "plain"),
    "paused": ("Paused by the site", "plain"),
    "resumed": ("Resumed by the site", "plain"),
    "left": ("Left the federation", "plain"),
    "connected": ("Connected to the coordinator", "good"),
    "disconnected": ("No connection to the coordinator", "bad"),
    "asked": ("The coordinator asked for something", "plain"),
    "answered": ("A message was answered", "plain"),
    "refused": ("A message was refused", "bad"),
    "bundle_refused": ("A bundle that this site did not approve was refused", "bad"),
    "worker_killed": ("The worker was killed by the agent", "bad"),
    "worker_died": ("The worker ended", "bad"),
    "failed": ("A message could not be answered", "bad"),
    "mended": ("The audit log's last line was torn (a power cut?); it is kept aside", "bad"),
}
_LEFT = {
    "update": "an update",
    "activations": "output of the first layers",
    "gradient": "gradients for the server's layers",
    "words": "words of reports",
    "statistics": "statistics of the training data",
    "sums": "evaluation figures",
}
_WORTH_SAYING_S = 0.1
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def request_text(facts: Mapping[str, Fact]) -> str:
    """Say what the coordinator asked for."""
    kind = str(facts.get("kind", ""))
    words = _ASKED.get(kind, "sent a message of a kind that is not known here, for {what}")
    return f"The coordinator {words.format(what=what_text(facts))}{_run(facts)}."


def doing_text(facts: Mapping[str, Fact]) -> str:
    """Say what is being done, without a capital or a full stop."""
    words = _DOING.get(str(facts.get("kind", "")), "answering a message for {what}")
    return words.format(what=what_text(facts))


def what_text(facts: Mapping[str, Fact]) -> str:
    """Name the round and study."""
    study = str(facts.get("study", ""))
    known = f"study {study}" if study not in ("", UNFIT) else "a study that could not be read"
    number = facts.get("round_number", 0)
    return f"round {number} of {known}" if number else known


def outcome_text(
    entries: Sequence[AuditEntry],
    releases: Sequence[Release],
    spends: Sequence[Spend],
    policy: PolicySection,
) -> tuple[str, Tone]:
    """Say what came of a request.

    Args:
        entries: What the audit log has after the request; empty if nothing.
        releases: What left.
        spends: What was charged.
        policy: States the budget.
    """
    last = entries[-1] if entries else None
    if last is not None and last.event == "answered":
        return _answered(last.facts, releases, spends, policy), "good"
    if last is not None and last.event == "refused":
        reason = str(last.facts.get("reason", ""))
        why = REASONS.get(reason, reason)
        if any(entry.event == "bundle_refused" for entry in entries):
            why = "its bundle is not one that this site approved"
        return f"Refused: {why}.", "bad"
    text = "It was not answered: the process ended." if last is None else event_text(last)[0]
    if any(release.kind != "refusal" for release in releases):
        text += " Its answer was on the way out and may have left."
    if spends:
        text += " The budget was charged before, and stays so."
    return text, "bad"


def event_text(entry: AuditEntry) -> tuple[str, Tone]:
    """Say what happened."""
    words, tone = _EVENTS[entry.event]
    facts = entry.facts
    if "version" in facts:
        words += f", medfed {facts['version']}"
    if "address" in facts:
        words += f" ({facts['address']})"
    if "fingerprint" in facts:
        words += f", fingerprint {facts['fingerprint']}"
    if entry.event == "bundle_refused" and "sha256" in facts:
        words += f" (SHA-256 {facts['sha256']})"
    if "code" in facts:
        code = int(facts["code"])
        words += f" with exit code {code}" if code >= 0 else f", killed by signal {-code}"
    if "bytes" in facts:
        words += f" ({size_text(int(facts['bytes']))})"
    if "reason" in facts:
        words += f": {REASONS.get(str(facts['reason']), str(facts['reason']))}"
    return f"{words}.", tone


def left_text(release: Release, facts: Mapping[str, Fact]) -> str:
    """Say what a reply of the release list held, on its own."""
    about = f" for {what_text(facts)}{_run(facts)}" if release.run else ""
    if release.kind == "refusal":
        return f"A refusal left{about}."
    return f"{_parts(release) or 'An answer without figures left'}{about}."


def size_text(num_bytes: int) -> str:
    """Return a size as people say it."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} bytes"


def duration_text(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _answered(
    facts: Mapping[str, Fact],
    releases: Sequence[Release],
    spends: Sequence[Spend],
    policy: PolicySection,
) -> str:
    kind = str(facts.get("kind", ""))
    done = _DONE.get(kind, "Answered")
    if float(facts.get("seconds", 0)) >= _WORTH_SAYING_S:
        done += f" in {duration_text(float(facts['seconds']))}"
    return " ".join([f"{done}.", *_leaving(facts, releases), *_spending(facts, spends, policy)])


def _leaving(facts: Mapping[str, Fact], releases: Sequence[Release]) -> list[str]:
    sentences = []
    for release in releases:
        parts = _parts(release)
        if parts:
            sentences.append(f"{parts}.")
        if "evaluation" in release.withheld:
            sentences.append("No figures left: the policy does not release them.")
    if not releases:
        sentences.append(f"{size_text(int(facts.get('bytes', 0)))} left.")
    return sentences


def _parts(release: Release) -> str:
    """Name what is of data in a reply; empty if nothing is."""
    what = _LEFT.get(release.kind)
    if what is None:
        return ""
    ours = [one for one in release.quantities if one.protection != "public"]
    ours = [one for one in ours if release.kind != "update" or one.name == "update"]
    if not ours:
        return ""
    size = size_text(sum(one.num_bytes for one in ours))
    return f"{what.capitalize()} of {size} left{_protection(ours[0])}"


def _protection(quantity: Quantity) -> str:
    """What covers a quantity, where that is not the epsilon which is stated beside it."""
    if quantity.protection == "none":
        return f", {quantity.cost.partition(';')[0]}"
    if quantity.cost.startswith("masked"):
        return ", masked: the server sees the sum over sites only"
    return ", with seeded noise: not private" if "seeded noise" in quantity.cost else ""


def _spending(
    facts: Mapping[str, Fact], spends: Sequence[Spend], policy: PolicySection
) -> list[str]:
    if "epsilon" not in facts:
        private = all(spend.unit != "none" for spend in spends)
        return [] if private else ["No epsilon covers it: the study has no privacy."]
    spent, budget = float(facts["epsilon"]), policy.max_epsilon
    unit = spends[-1].unit if spends else policy.unit
    left = max(0.0, budget - spent)
    return [
        f"Epsilon {spent:.2f} of {budget:g} per {unit} spent (delta {policy.target_delta:g}), "
        f"{left:.2f} left."
    ]


def _run(facts: Mapping[str, Fact]) -> str:
    run = str(facts.get("run", ""))
    return f" (run {run})" if run not in ("", UNFIT) else ""
