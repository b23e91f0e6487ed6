"""What the page says in plain words: the guarantee, its limits, the terms, how to check it.

Terms are those of NIST SP 800-226 (March 2025), Guidelines for Evaluating Differential Privacy
Guarantees, https://doi.org/10.6028/NIST.SP.800-226.
"""

from medfed.simulations.auditing.audit import Audit

_COVERED = {
    "patient": "one patient with all of that patient's images",
    "record": "one image; a patient with several images has a larger epsilon",
    "site": "one hospital with all its patients",
    "none": "nobody: there is no differential privacy",
}
_NEIGHBOURS = {
    "patient": "one patient, with all images, is added or removed",
    "record": "one image is added or removed",
    "site": "one hospital is added or removed",
    "none": "does not apply",
}


def guarantee(audit: Audit) -> list[tuple[str, str]]:
    """Return what is claimed, line by line: unit, neighbours, parameters, against whom."""
    unit = audit.unit or ("none" if audit.study is None else audit.study.privacy.unit)
    rows = [
        ("Unit of privacy", f"{unit}: what is hidden is the presence of {_COVERED[unit]}."),
        (
            "Neighbouring data sets",
            f"Two data sets are neighbours if {_NEIGHBOURS[unit]} (unbounded DP).",
        ),
    ]
    if audit.epsilon is not None:
        rows.append(
            (
                "Privacy parameters",
                f"Epsilon {audit.epsilon:.4f} at delta {audit.delta:g}, of all entries of a ledger "
                "together, upper bound (the largest of the ledgers). Whatever anyone infers from "
                "the releases, its odds change by a factor of at most e to the epsilon by a "
                f"{unit} taking part, but for a chance of about delta.",
            )
        )
    rows += [
        (
            "Delta",
            f"{audit.delta:g}. It should be well below one over the number of {unit}s at a site; "
            "the ledger does not hold that number, so the auditor must ask for it.",
        ),
        ("Threat model", _threat(audit, unit)),
    ]
    return rows


def _threat(audit: Audit, unit: str) -> str:
    if unit in ("patient", "record"):
        return (
            "Each site adds its noise before anything leaves (a local trust model for sites, a "
            "central one within each hospital). It holds against the coordinator, the other sites "
            "and everyone who gets the model, alone or together, whatever else they know. It does "
            "not hold against the hospital itself, who holds the images."
        )
    if unit == "site":
        secure = audit.study is not None and audit.study.secure_aggregation.enabled
        if secure:
            return (
                "All sites together add the noise, and the coordinator sees the sum alone. It "
                "holds against the coordinator if the stated share of the sites is honest."
            )
        return (
            "The coordinator adds the noise (a central trust model): it sees every update and is "
            "trusted. It holds against the other sites and everyone who gets the model."
        )
    return "None is claimed. Whoever sees updates or the model may learn about patients."


def not_covered(audit: Audit) -> list[str]:
    """Return what no epsilon on this page covers."""
    return [
        "Counts of held-out patients. Evaluation metrics leave exactly, without noise, if the "
        "site's policy lets them (release_evaluation).",
        "That a hospital takes part at all, in which rounds, and when: the coordinator sees it.",
        "What a site states publicly: its number of patients, its name, its policy's refusals.",
        "Choices made by looking at the data outside the ledger: architecture, preprocessing, "
        "learning rates, the study that was published of several. Runs that are in the same ledger "
        "are charged; others are not.",
        "Words of reports that are named without noise, and a vocabulary that was agreed before.",
        "Anything else that is computed on the same patients: other data sets' ledgers of the same "
        "hospital hold other entries, and a patient who is in several has the sum of them.",
        "What the model says about everyone. A model that learns that smoking harms has learnt it "
        "of smokers who never took part; differential privacy does not prevent that.",
        "Time and memory that a computation takes (side channels), and whoever can read the "
        "hospital's own disks. Floating-point noise is not exact noise.",
        "Bias. Noise hurts small groups most; look at the metrics of each group.",
        "A hospital that runs other code than this. The mechanism was audited as installed here.",
    ]


def terms(audit: Audit) -> list[tuple[str, str]]:
    """Return the terms of NIST SP 800-226 and where each stands here."""
    return [
        (
            "Privacy parameters (epsilon, delta)",
            "Recomputed above from the ledger, not taken over.",
        ),
        (
            "Unit of privacy",
            "patient is the guide's user level where users are patients; record is event level.",
        ),
        ("Unbounded DP", "Neighbours differ by adding or removing a unit, not by replacing one."),
        (
            "Privacy budget, composition",
            "Epsilon of the site's policy is the budget; all entries of a ledger compose, over "
            "rounds, runs, tasks and retries.",
        ),
        ("Trust model", "See the threat model above: who must be trusted with what."),
        (
            "Mechanism",
            "The Gaussian mechanism on clipped gradients (DP-SGD) with Poisson sampling; "
            "sensitivity is max_grad_norm, and the mechanism part measures it.",
        ),
        (
            "Privacy hazards",
            "Wrong sensitivity, re-used or missing noise, sampling that is not what was accounted, "
            "uncharged releases: each has a check on this page.",
        ),
        (
            "Security, access control, data collection exposure",
            "The base of the guide's pyramid: of the hospital's own house, and not audited here.",
        ),
    ]


def recomputing(audit: Audit) -> list[str]:
    """Return how to check the numbers without medfed, step by step."""
    delta = f"{audit.delta:g}"
    return [
        "Get the ledger's folder from the hospital (`medfed site ledger export`): ledger.jsonl, "
        "ledger.pub, countersignatures.jsonl, coordinator.pub. Compare both public keys with what "
        "hospital and coordinator say by another channel: the ledger vouches for no key.",
        "Read scripts/verify_ledger.py (about 300 lines, nothing of medfed) and run "
        f"`python verify_ledger.py FOLDER --delta {delta}` with only cryptography and "
        "dp-accounting installed.",
        "With another tool: each entry's event is `steps` Gaussian releases of `noise_multiplier` "
        "over a Poisson sample at `sample_rate`. Compose all of them at this delta, less the sum "
        "of `extra_delta`, in any accountant for add or remove one (Opacus' PRV, Microsoft's "
        "prv_accountant, TensorFlow Privacy). Renyi accountants give more.",
        "Ask the coordinator for its heads.jsonl and compare it with the ledger: a site that signs "
        "a changed ledger anew can be found by that alone.",
    ]
