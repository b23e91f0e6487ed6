"""Label noise: training labels that are wrong for a share of a site's patients.

Shapes: N images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medfed.client.data.store import Store
from medfed.common.errors import DataError
from medfed.common.seeding import numpy_rng
from medfed.common.study.simulation import LabelNoiseSection
from medfed.simulations.partition.classes import known


def wrong_labels(
    store: Store, training: Mapping[str, Sequence[int]], section: LabelNoiseSection, seed: int
) -> dict[int, int]:
    """Return the wrong label, an index into the classes, of every training image that has one.

    A patient is mistaken with probability `rate`, and then in all of his or her images: each
    class is taken for the one so many places further on (drawn from all others alike), or for that
    of `pairs`. Who is mistaken follows from the patient alone, so that a larger rate adds patients
    and takes none away.

    Args:
        store: True labels.
        training: Rows of the training side by site.
        section: Rate, pairs and sites.
        seed: Root seed.

    Raises:
        DataError: Labels that are not one a image, or an unknown site or class.
    """
    if store.task != "classification" or not store.one_label:
        raise DataError(
            "simulation.partition.noise is for classification with one label an image, this is "
            f"{store.mode} {store.task}. Remove it."
        )
    key = "simulation.partition.noise"
    sites = [known(name, list(training), f"{key}.sites", "site") for name in section.sites]
    taken_for = _pairs(store.classes, section, key)
    labels: npt.NDArray[np.int64] = store.labels.astype(np.int64)
    wrong: dict[int, int] = {}
    for name in sites or training:
        for row in training[name]:
            label = int(labels[row])
            places = _places(store.patients[row], section.rate, len(store.classes), seed)
            mistaken = taken_for.get(label, label) if section.pairs else label + places
            if places and mistaken != label:
                wrong[row] = mistaken % len(store.classes)
    return wrong


def _pairs(classes: Sequence[str], section: LabelNoiseSection, key: str) -> dict[int, int]:
    if not section.pairs and len(classes) < 2:
        raise DataError(f"{key}: expected two classes or more, got {len(classes)}. Remove it.")
    pairs = {
        classes.index(known(true, classes, f"{key}.pairs")): classes.index(
            known(wrong, classes, f"{key}.pairs.{true}")
        )
        for true, wrong in section.pairs.items()
    }
    for true, wrong in pairs.items():
        if true == wrong:
            raise DataError(f"{key}.pairs: {classes[true]} is taken for itself. Remove it.")
    return pairs


def _places(patient: str, rate: float, num_classes: int, seed: int) -> int:
    """How many classes further a patient's labels are read; 0 if they are right."""
    rng = numpy_rng(seed, "label noise", patient)
    mistaken = rng.random() < rate
    return int(rng.integers(1, num_classes)) if mistaken else 0
