"""Judges what is known of a data set's images: labels, patients, split, copies."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from medfed.client.data.duplicates import nearly_same, same_content
from medfed.client.data.facts import Facts, Side
from medfed.client.data.finding import Finding, some
from medfed.client.data.pixel_findings import judge_pixels
from medfed.common.study import StudyConfig

_FEW_PATIENTS = 20
_ONE = "Keep one of each, or give them one patient."


def judge(
    facts: Sequence[Facts], study: StudyConfig, min_patients_per_count: int
) -> Iterator[Finding]:
    """Yield what there is to say, at least a line a check.

    Args:
        facts: Of every image.
        study: What they are meant for.
        min_patients_per_count: Fewest held-out patients that a figure may be about.
    """
    usable = [one for one in facts if not one.problem]
    yield from _readable(facts, usable)
    yield from _labels(facts, study)
    yield from _patients(usable, study, min_patients_per_count)
    yield from _leakage(facts)
    yield from _copies(facts)
    if usable:
        yield from judge_pixels(usable, study)


def _readable(facts: Sequence[Facts], usable: Sequence[Facts]) -> Iterator[Finding]:
    refused = [one for one in facts if one.problem]
    if not refused:
        yield Finding("ok", "readable", f"all {len(facts):,} images")
        return
    text = f"{len(refused):,} of {len(facts):,} images cannot be used"
    if not usable:
        yield Finding("error", "readable", f"{text}. The first: {refused[0].problem}")
        return
    yield Finding(
        "warning",
        "readable",
        f"{text} and would be left out. The first: {refused[0].problem}",
    )


def _labels(facts: Sequence[Facts], study: StudyConfig) -> Iterator[Finding]:
    task = study.task
    known = set(task.label_names)
    unknown = Counter(label for one in facts for label in one.labels if label not in known)
    if unknown:
        names = [f"{label!r} ({count:,} images)" for label, count in unknown.most_common()]
        yield Finding(
            "error",
            "labels",
            f"{some(names)}: outside the study's label set ({', '.join(task.label_names)}). Add "
            "them to task.classes, or mend the rows.",
        )
    wrong = [one.name for one in facts if task.one_label and len(one.labels) != 1]
    if wrong:
        yield Finding(
            "error",
            "labels",
            f"{len(wrong):,} image(s) have no label, or several, where the study wants one: "
            f'{some(wrong)}. Mend their rows, or set task.mode = "multilabel".',
        )
    counts = Counter(label for one in facts for label in one.labels)
    text = ", ".join(f"{name} {counts[name]:,}" for name in task.label_names)
    missing = [name for name in task.label_names if not counts[name]]
    if missing and len(missing) == len(task.label_names):
        yield Finding("error", "classes", f"no image shows any of {', '.join(missing)}.")
    elif missing:
        yield Finding(
            "warning",
            "classes",
            f"{text}. No image shows {', '.join(missing)}: nothing here can learn them.",
        )
    else:
        yield Finding("ok", "classes", text or "none named")


def _patients(usable: Sequence[Facts], study: StudyConfig, min_patients: int) -> Iterator[Finding]:
    images = Counter(one.patient for one in usable)
    if not images:
        return
    most = max(images.values())
    text = f"{len(images):,} patients, at most {most:,} image{'s' * (most > 1)} each"
    if len(images) < _FEW_PATIENTS:
        yield Finding("warning", "patients", f"{text}: few to learn from, fewer to hide among.")
    else:
        yield Finding("ok", "patients", text)
    yield from _batch(usable, study)
    sides = {one.side for one in usable}
    if sides == {""}:
        yield from _later_split(usable, study, min_patients)
        return
    for side in sorted({"train", "test"} - sides):
        yield Finding("error", "split", f"no image is on the {side} side. Give it some patients.")
    for side in sorted(sides & {"train", "test"}):
        yield from _side(usable, study, side, min_patients)


def _batch(usable: Sequence[Facts], study: StudyConfig) -> Iterator[Finding]:
    """A batch larger than what is trained on; of a split to come, its expected size."""
    share = 1.0
    training = [one for one in usable if one.side == "train"]
    if not training:
        training, share = list(usable), 1 - study.evaluation.test_fraction
    privacy = study.privacy
    if privacy.at_sites:
        key, batch = "privacy.expected_batch_size", float(privacy.expected_batch_size)
        by_patient = privacy.unit == "patient"
        units = len({one.patient for one in training}) if by_patient else len(training)
        what = "patients" if by_patient else "images"
    else:
        key, batch = "training.batch_size", float(study.training.batch_size)
        units, what = len(training), "images"
    if batch > units * share:
        yield Finding(
            "error",
            "batch",
            f"{key} = {batch:g} is more than the {units * share:,.0f} {what} to train on. Add "
            "data, or ask the coordinator for a smaller batch.",
        )
    else:
        yield Finding("ok", "batch", f"{key} = {batch:g} of {units * share:,.0f} {what}")


def _later_split(
    usable: Sequence[Facts], study: StudyConfig, min_patients: int
) -> Iterator[Finding]:
    """No sides yet: what a split by patient will probably leave of each class."""
    fraction = study.evaluation.test_fraction
    patients = _patients_by_class(usable)
    few = [
        f"{name} ({len(patients[name]):,} patients)"
        for name in study.task.label_names
        if 0 < len(patients[name]) * fraction < min_patients
    ]
    if few:
        yield Finding(
            "warning",
            "split",
            f"holding out {fraction:.0%} of the patients will leave fewer than {min_patients} of "
            f"{', '.join(few)}: too few for figures about them. Add patients, or raise "
            "evaluation.test_fraction.",
        )
    else:
        yield Finding("ok", "split", f"by patient, {fraction:.0%} held out as the study says")


def _side(
    usable: Sequence[Facts], study: StudyConfig, side: Side, min_patients: int
) -> Iterator[Finding]:
    own = [one for one in usable if one.side == side]
    num_patients = len({one.patient for one in own})
    patients = _patients_by_class(own)
    everywhere = _patients_by_class(usable)
    absent = [name for name in study.task.label_names if everywhere[name] and not patients[name]]
    if absent:
        yield Finding(
            "warning",
            "split",
            f"no {side} image shows {', '.join(absent)}, which other images do. Move patients "
            "who do to that side.",
        )
    few = [
        f"{name} ({len(patients[name])})"
        for name in study.task.label_names
        if 0 < len(patients[name]) < min_patients
    ]
    if side == "test" and (few or num_patients < min_patients):
        yield Finding(
            "warning",
            "split",
            f"fewer than {min_patients} held-out patients (policy.min_patients_per_count) in all "
            f"or of {', '.join(few) or 'any class'}: their figures will not leave. Hold out more.",
        )
    elif not absent:
        yield Finding("ok", "split", f"{side}: {len(own):,} images of {num_patients:,} patients")


def _patients_by_class(facts: Sequence[Facts]) -> dict[str, set[str]]:
    patients: dict[str, set[str]] = defaultdict(set)
    for one in facts:
        for label in one.labels:
            patients[label].add(one.patient)
    return patients


def _leakage(facts: Sequence[Facts]) -> Iterator[Finding]:
    sides: dict[str, set[str]] = defaultdict(set)
    for one in facts:
        if one.side:
            sides[one.patient].add(one.side)
    leaking = [one.name for one in facts if len(sides[one.patient]) > 1]
    if leaking:
        yield Finding(
            "error",
            "leakage",
            f"images of patients who are on both sides of the split: {some(leaking)}. Put all "
            "images of a patient on one side.",
        )
    elif any(sides.values()):
        yield Finding("ok", "leakage", "no patient is on both sides of the split")


def _copies(facts: Sequence[Facts]) -> Iterator[Finding]:
    groups = same_content([one.pixels.content if one.pixels else None for one in facts])
    grey = {n for n, one in enumerate(facts) if one.pixels and one.look is None}
    # Black slices are all the same and no copies of one another.
    groups = [group for group in groups if not grey.issuperset(group)]
    across = [group for group in groups if len({facts[n].side for n in group}) > 1]
    if across:
        yield Finding("error", "copies", _tell(facts, across, "on both sides of the split", _ONE))
    others = [group for group in groups if len({facts[n].patient for n in group}) > 1]
    others = [group for group in others if group not in across]
    if others:
        yield Finding("warning", "copies", _tell(facts, others, "of different patients", _ONE))
    within = [group for group in groups if len({facts[n].patient for n in group}) == 1]
    if within:
        yield Finding(
            "warning", "copies", _tell(facts, within, "of one patient", "Keep one of each.")
        )
    odd = [group for group in groups if len({facts[n].labels for n in group}) > 1]
    if odd:
        yield Finding(
            "warning", "copies", _tell(facts, odd, "with different labels", "Mend the labels.")
        )
    if not groups:
        yield Finding("ok", "copies", "no two images have the same pixels")
    yield from _lookalikes(facts)


def _tell(facts: Sequence[Facts], groups: Sequence[Sequence[int]], what: str, way_out: str) -> str:
    pairs = [" = ".join(facts[n].name for n in group) for group in groups]
    return (
        f"{len(groups):,} picture(s) occur more than once, pixel for pixel, {what}: "
        f"{some(pairs)}. {way_out}"
    )


def _lookalikes(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Pictures of different patients that look the same: resampled, cropped or recompressed."""
    looks = {n: one.look for n, one in enumerate(facts) if one.look is not None}
    pairs = [
        f"{facts[a].name} ~ {facts[b].name}"
        for a, b in nearly_same(looks)
        if facts[a].patient != facts[b].patient and _content(facts[a]) != _content(facts[b])
    ]
    if pairs:
        yield Finding(
            "warning",
            "lookalikes",
            f"{len(pairs):,} pair(s) of different patients look nearly the same: {some(pairs)}. "
            "Look at them: copies of one picture belong to one patient.",
        )


def _content(one: Facts) -> str:
    return one.pixels.content if one.pixels else ""
