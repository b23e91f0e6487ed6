"""Data cards: what each site said of its training data, read from an arm's `statistics.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medfed.common.harmonisation import distance, quantiles
from medfed.common.statistics import (
    IMAGES_PER_PATIENT,
    SIZES,
    Floats,
    bin_labels,
    from_lists,
    standard_errors,
)
from medfed.common.study import StudyConfig
from medfed.simulations.reporting.tables import (
    ABSENT,
    Table,
    counted,
    figure,
    in_order,
    num_bytes,
    whole,
)

WITHHELD = "withheld"


@dataclass(frozen=True)
class Card:
    """What is known of one site's data.

    Attributes:
        site: Its name.
        status: ok; refused by the site's policy; rejected by screening; failed. Of a site's own
            card, exact.
        values: By quantity (`common.statistics`), NaN for what was not said; None without any.
        noise: secure, seeded or none.
        min_count: Fewest patients that a number is about; 0 with noise.
        epsilon: Spent by the site's data set after it; None without noise.
        size: Bytes of its answer; None without one.
        reason: Code or message for anything but ok.
    """

    site: str
    status: str
    values: Mapping[str, Floats] | None = None
    noise: str = "none"
    min_count: int = 0
    epsilon: float | None = None
    size: int | None = None
    reason: str = ""

    @property
    def with_noise(self) -> bool:
        """Whether its numbers carry noise."""
        return self.noise != "none"

    def shares(self, channel: int) -> Floats | None:
        """Return the shares of grey levels in each bin; under noise some may be below 0."""
        mass = None if self.values is None else self.values["intensities"][channel]
        if mass is None or np.isnan(mass).any() or not mass.sum() > 0:
            return None
        shares: Floats = mass / mass.sum()
        return shares

    def share_error(self, channel: int, study: StudyConfig) -> float:
        """Return about what standard error each of `shares` has, the number of patients given."""
        if self.values is None or not self.with_noise:
            return 0.0
        total = float(self.values["intensities"][channel].sum())
        return standard_errors(study)["intensities"] / total if total > 0 else 0.0


@dataclass(frozen=True)
class CardFacts:
    """What an arm's `statistics.json` holds.

    Attributes:
        cards: By site.
        reference: Quantile functions [C, 257] that grey levels are brought to; None without.
    """

    cards: Mapping[str, Card]
    reference: Floats | None


def names_of(facts: CardFacts | None) -> list[str]:
    """Return the sites that were asked, site-2 before site-10."""
    return sorted(facts.cards if facts else (), key=in_order)


def read_cards(table: Mapping[str, Any], study: StudyConfig) -> CardFacts | None:
    """Read `statistics.json`; None if it is not there (an empty table).

    Raises:
        KeyError, TypeError, ValueError, AttributeError: A table of another form.
    """
    if not table or not study.statistics.collect:
        return None
    cards = {str(site): _card(str(site), facts, study) for site, facts in table["sites"].items()}
    reference = np.array(table["reference"], dtype=np.float64) if table["reference"] else None
    return CardFacts(cards, reference)


def _card(site: str, facts: Mapping[str, Any], study: StudyConfig) -> Card:
    values, epsilon, size = facts.get("values"), facts.get("epsilon"), facts.get("bytes")
    return Card(
        site=site,
        status=str(facts["status"]),
        values=None if values is None else from_lists(values, study),
        noise=str(facts.get("noise", "none")),
        min_count=int(facts.get("min_count", 0)),
        epsilon=None if epsilon is None else float(epsilon),
        size=None if size is None else int(size),
        reason=str(facts.get("reason") or ""),
    )


def cards_statement(facts: CardFacts | None, study: StudyConfig) -> tuple[str, ...]:
    """Say in plain words where the numbers come from and what protects the patients in them."""
    if facts is None:
        return ("No site has described its data yet.",)
    said = sum(card.status == "ok" for card in facts.cards.values())
    lines = [
        f"{said} of {counted(len(facts.cards), 'site')} described their training data before the "
        "first round. Patients count once each; grey levels are the mean over a patient's images, "
        "then over patients. Held-out patients are not among them.",
        protection(study),
    ]
    if facts.reference is not None:
        lines.append(
            "Grey levels were harmonised: each site maps its images, training and held out, by a "
            "table from its own histogram above to the dashed line, the mean of all sites."
        )
    return tuple(lines)


def protection(study: StudyConfig) -> str:
    """Say what protects the patients in a card."""
    asked = study.statistics
    if asked.noise_multiplier is None:
        return (
            f"No noise was added: what is about fewer than {counted(asked.min_count, 'patient')} "
            "(or more, where a site's policy says so), or would show such a number by subtraction, "
            "was withheld. No ε covers the rest."
        )
    return (
        "Numbers are under differential privacy: all of a site's are one Gaussian release "
        f"(multiplier {asked.noise_multiplier:g}), charged to its ledger and part of every ε after "
        "it. ± is the standard error of that noise; a number below it says nothing, and may be "
        "negative. A patient counts in at most "
        f"{counted(asked.classes_per_patient, 'class').replace('classs', 'classes')}, and with at "
        f"most {counted(study.privacy.images_per_patient, 'image')}."
    )


def cards_table(cards: Mapping[str, Card], study: StudyConfig, names: list[str]) -> Table:
    """Return what each site answered, in the order of `names`."""
    rows = tuple(
        (
            name,
            card.status,
            number(card, "patients", 0, study),
            number(card, "images", 0, study),
            ABSENT if card.size is None else num_bytes(card.size),
            figure(card.epsilon, 4),
            card.reason,
        )
        for name, card in ((name, cards[name]) for name in names)
    )
    columns = ("Site", "Answer", "Patients", "Images", "Sent", "ε after it", "Reason")
    strong = frozenset(i for i, name in enumerate(names) if cards[name].status != "ok")
    return Table(columns, rows, strong=strong, text=frozenset({0, 1, 6}))


def card_rows(card: Card, study: StudyConfig) -> list[tuple[str, str]]:
    """Return the counts of a card as labels and texts; nothing where the site said nothing."""
    if card.values is None:
        return []
    rows = [
        ("Patients", number(card, "patients", 0, study)),
        ("Images", number(card, "images", 0, study)),
        ("Images a patient", _bins(card, "images_per_patient", IMAGES_PER_PATIENT, study)),
    ]
    if "sizes" in card.values:
        rows.append(("Longest side, pixels", _bins(card, "sizes", SIZES, study)))
    else:
        side = study.data.image_size
        rows.append(("Image size", f"{' x '.join([str(side)] * study.data.dimensions)}, as asked"))
    error = card.share_error(0, study)
    protected = f"withheld below {counted(card.min_count, 'patient')}; no noise"
    if card.status == "exact":
        protected = "exact, for this site's eyes alone"
    elif card.with_noise:
        protected = f"noise ({card.noise}), ±{100 * error:.2g} % on each bin of grey levels"
    return [*rows, ("Protection", protected)]


def number(card: Card, name: str, place: int, study: StudyConfig) -> str:
    """Write one number of a card, with its standard error under noise."""
    if card.values is None:
        return ABSENT
    value = float(card.values[name][place])
    if np.isnan(value):
        return WITHHELD
    if not card.with_noise:
        return whole(value)
    return f"{value:.0f} ± {standard_errors(study)[name]:.0f}"


def distances(cards: Mapping[str, Card], names: list[str], channel: int) -> Floats:
    """Return how far the sites' grey levels lie apart (Wasserstein-1, in levels); NaN: unknown."""
    found = []
    for name in names:
        values = cards[name].values
        found.append(None if values is None else quantiles(values["intensities"][channel]))
    return np.array(
        [[np.nan if a is None or b is None else distance(a, b) for b in found] for a in found]
    ).reshape(len(names), len(names))


def _bins(card: Card, name: str, starts: tuple[int, ...], study: StudyConfig) -> str:
    assert card.values is not None
    shown = [
        f"{label}: {number(card, name, place, study)}"
        for place, label in enumerate(bin_labels(starts))
        if card.with_noise or card.values[name][place] != 0
    ]
    return ", ".join(shown)
