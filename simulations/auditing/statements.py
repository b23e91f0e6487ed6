"""What the page says in plain words: the guarantee, its limits, the terms, how to check it.

Terms are those of NIST SP 800-226 (March 2025), Guidelines for Evaluating Differential Privacy
Guarantees, https://doi.org/10.6028/NIST.SP.800-226.
"""

from medfed.common.study import StudyConfig
from medfed.simulations.auditing.audit import Audit

_COVERED = {
    "patient": "one patient with all of that patient's images",
    "record": "one image; a patient with several images has a larger epsilon",
    "site": "one hospital with all its patients",
    "none": "there is no differential privacy, and nobody is hidden",
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
        ("Unit of privacy", f"{unit}: {_hidden(audit, unit)}."),
        (
            "Neighbouring data sets",
            f"Two data sets are neighbours if {_neighbours(audit, unit)}.",
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
    if not audit.claims_privacy:
        return [*rows, ("Threat model", _threat(audit, unit))]
    rows += [
        (
            "Delta",
            f"{audit.delta:g}. It should be well below one over the number of "
            f"{'sites' if unit == 'site' else unit + 's at a site'}; "
            "the ledger does not hold that number, so the auditor must ask for it.",
        ),
        ("Threat model", _threat(audit, unit)),
    ]
    return rows


def _hidden(audit: Audit, unit: str) -> str:
    if unit == "site" and audit.study is not None and _shared(audit.study):
        return "what is hidden is what one hospital sent, made of all its patients"
    if unit == "none":
        return _COVERED[unit]
    return f"what is hidden is the presence of {_COVERED[unit]}"


def _neighbours(audit: Audit, unit: str) -> str:
    if unit == "site" and audit.study is not None and _shared(audit.study):
        return (
            "one hospital's update is its own in one and zero in the other: that it takes part is "
            "known"
        )
    return _NEIGHBOURS[unit] + (" (unbounded DP)" if unit != "none" else "")


def _shared(study: StudyConfig) -> bool:
    return study.secure_aggregation.distributed_noise != "none"


def _threat(audit: Audit, unit: str) -> str:
    masked = audit.study is not None and audit.study.secure_aggregation.enabled
    if unit in ("patient", "record"):
        return (
            "Each site adds its noise before anything leaves (a local trust model for sites, a "
            "central one within each hospital). It holds against the coordinator, the other sites "
            "and everyone who gets the model, alone or together, whatever else they know. It does "
            "not hold against the hospital itself, who holds the images."
            + (f" {_MASKS}" if masked else "")
        )
    if unit == "site" and audit.study is not None:
        return _shared_threat(audit.study) if masked else _central_threat(audit.study)
    if unit == "site":
        return (
            "By who adds the noise (the ledger's column Noise): the coordinator, who then sees "
            "every update and is trusted, or all sites together. In either case it holds against "
            "whoever sees the models alone."
        )
    return (
        "No differential privacy is claimed. Whoever sees the model, or an update, may learn about "
        "patients." + (f" {_MASKS}" if masked else "")
    )


_MASKS = (
    "Secure aggregation hides each update from a coordinator that is curious and keeps to the "
    "protocol: it sees the sum. That is no bound on what the sum or the model tells, and it does "
    "not hold against a coordinator that invents sites or hands out keys of its own."
)


def _central_threat(study: StudyConfig) -> str:
    text = (
        "The coordinator adds the noise (a central trust model): it sees every update and is "
        "trusted with it. It holds against the other sites and everyone who gets the models, all "
        "rounds together. It does not hold against the coordinator, nor against readers of its "
        "records, which name who answered."
    )
    if study.federation.fraction < 1:
        text += (
            " The coordinator's epsilon counts on nobody knowing which sites a round drew: against "
            "those who do (each site knows of itself, and its own ledger counts that) the epsilon "
            "is that of federation.fraction = 1."
        )
    return text


def _shared_threat(study: StudyConfig) -> str:
    secure = study.secure_aggregation
    return (
        f"Each site adds a share of the noise before it masks its update, and the coordinator "
        f"sees the sum alone. It holds against everyone who gets the models and against a "
        f"coordinator that is curious and keeps to the protocol, if at least "
        f"{secure.honest_sites:.0%} of the sites asked in a round add their noise and keep it to "
        "themselves; sites beyond those may tell the coordinator all they know (a site that is "
        "curious about another is one of them: it knows its own share), and as many may "
        f"drop out as leave {secure.threshold:.0%} of all. It does not hold against a coordinator "
        "that invents sites or hands out keys of its own: it would see each update with that one "
        "site's share of the noise."
    )


def not_covered(audit: Audit) -> list[str]:
    """Return what no epsilon on this page covers."""
    return [
        *_not_covered_per_site(audit),
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


def _not_covered_per_site(audit: Audit) -> list[str]:
    if audit.unit != "site":
        return []
    return [
        "One patient, beyond what hiding the whole hospital gives: an update is made without noise "
        "at the hospital, and whoever sees it alone sees what any update shows.",
        "Which sites joined, were asked and answered: the coordinator's records hold it.",
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
            "patient is the guide's user level where users are patients, site where they are "
            "hospitals; record is event level.",
        ),
        ("Unbounded DP", "Neighbours differ by adding or removing a unit, not by replacing one."),
        (
            "Privacy budget, composition",
            "Epsilon of the site's policy is the budget; all entries of a ledger compose, over "
            "rounds, runs, tasks and retries.",
        ),
        ("Trust model", "See the threat model above: who must be trusted with what."),
        ("Mechanism", _mechanism(audit)),
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


def _mechanism(audit: Audit) -> str:
    if not audit.claims_privacy:
        return "None."
    if audit.unit == "site" and audit.study is not None and _shared(audit.study):
        return (
            "The distributed discrete Gaussian mechanism on clipped updates; sensitivity is "
            "max_update_norm and what rounding adds to it, and the mechanism part measures both."
        )
    if audit.unit == "site":
        return (
            "The Gaussian mechanism on clipped updates (DP-FedAvg), sites drawn by Poisson "
            "sampling; sensitivity is max_update_norm, and the mechanism part measures it."
        )
    return (
        "The Gaussian mechanism on clipped gradients (DP-SGD) with Poisson sampling; "
        "sensitivity is max_grad_norm, and the mechanism part measures it."
    )


_SERVERS_LEDGER = (
    "The coordinator keeps a ledger of its own (server_state): what the noisy sums have cost, all "
    "sites together. The same script checks it. A site's own book counts the rounds it was "
    "asked in, at a rate of 1; where the coordinator adds the noise, the site vouches for none of "
    "it (noise none).",
)


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
        *(_SERVERS_LEDGER if audit.unit == "site" else ()),
        "Ask the coordinator for its heads.jsonl and compare it with the ledger: a site that signs "
        "a changed ledger anew can be found by that alone.",
    ]
