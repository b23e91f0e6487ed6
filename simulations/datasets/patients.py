"""Who is one patient where files do not say so plainly, and splits that keep patients whole."""

import logging
from collections.abc import Mapping, Sequence

from medfed.client.data.records import Split

logger = logging.getLogger(__name__)


def join_patients(keys: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the patient by record. Records that share a key, if only through others, are one.

    Args:
        keys: What a record may have in common with others of its patient, at least one text: a
            lesion, a case, the content of its file. The first one names the patient; of several
            names, the one that came first.
    """
    parent: dict[str, str] = {}
    rank: dict[str, int] = {}
    for own in keys.values():
        for key in own:
            parent.setdefault(key, key)
            rank.setdefault(key, len(rank))
            first, second = sorted(
                (_root(parent, own[0]), _root(parent, key)), key=rank.__getitem__
            )
            parent[second] = first
    return {record: _root(parent, own[0]) for record, own in keys.items()}


def keep_patients_whole(
    published: Mapping[str, Split | None], patients: Mapping[str, str], *, both: Split, name: str
) -> dict[str, Split | None]:
    """Return the side by record, the same one for all of a patient.

    Args:
        published: The side that the publisher gives, None where there is none.
        patients: The patient by record.
        both: Where a patient goes who is on both sides: "train" if nobody who is trained on may
            be tested on, "test" if all that is published for testing is to be tested on.
        name: The data set, for the warning that says how many change sides.
    """
    sides: dict[str, set[Split]] = {}
    for record, side in published.items():
        sides.setdefault(patients[record], set()).update({side} if side else ())
    side_of = {
        patient: both if len(own) > 1 else next(iter(own), None) for patient, own in sides.items()
    }
    whole = {record: side_of[patients[record]] for record in published}
    moved = sum(bool(side) and whole[record] != side for record, side in published.items())
    if moved:
        logger.warning(
            "The published split of %s has patients on both sides: %d of their image(s) move to "
            "%s, so that no patient is trained and tested on.",
            name,
            moved,
            both,
        )
    return whole


def _root(parent: dict[str, str], key: str) -> str:
    while parent[key] != key:
        parent[key] = parent[parent[key]]
        key = parent[key]
    return key
