import pickle  # only to show that records survive a process boundary
import re
from dataclasses import replace

import numpy as np
import pytest

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.common.study import PhantomSection
from medfed.simulations.phantom import load_phantom
from medfed.simulations.phantom.findings import (
    FIELD_OF_VIEW_MM,
    THORAX_HALF_WIDTH,
    Finding,
    Modality,
)
from medfed.simulations.phantom.rendering import View, render_image
from medfed.simulations.phantom.reports import WORDINGS, write_report
from medfed.simulations.phantom.scanners import make_scanners

MODALITIES: tuple[Modality, ...] = ("xray", "ct")


def cohort(
    modality: Modality, num_patients: int = 150, seed: int = 5, co_occurrence: float = 0.0
) -> SourceDataset:
    section = PhantomSection(
        num_patients=num_patients, modality=modality, co_occurrence=co_occurrence
    )
    return load_phantom(section, image_size=64, seed=seed)


def view_of(record: SourceRecord) -> View:
    (view, _) = record.read_image.args  # type: ignore[attr-defined]
    assert isinstance(view, View)
    return view


def mask_of(record: SourceRecord) -> np.ndarray:
    assert record.read_mask is not None
    return record.read_mask()


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantom_records_follow_the_contract(modality: Modality) -> None:
    dataset = cohort(modality)
    ids = [record.record_id for record in dataset.records]
    assert ids == sorted(set(ids))
    assert len({record.patient_id for record in dataset.records}) == 150
    for record in dataset.records[:20]:
        image, mask = record.read_image(), mask_of(record)
        assert (image.shape, image.dtype) == ((64, 64), np.uint8)
        assert (mask.shape, mask.dtype) == ((64, 64), np.uint8)
        assert record.split is None
        assert int(image.max()) - int(image.min()) > 80
    per_patient = [sum(r.patient_id == p for r in dataset.records) for p in {*ids_of(dataset)}]
    assert set(per_patient) == {1, 2, 3}


def ids_of(dataset: SourceDataset) -> list[str]:
    return [record.patient_id for record in dataset.records]


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantom_pixels_depend_on_seed_and_record_only(modality: Modality) -> None:
    first, again = cohort(modality, 40), cohort(modality, 40)
    bytes_in_order = [r.read_image().tobytes() for r in first.records]
    backwards = [r.read_image().tobytes() for r in reversed(again.records)]
    assert bytes_in_order == backwards[::-1]
    smaller = cohort(modality, 10)
    assert smaller.records[7].read_image().tobytes() == bytes_in_order[7]
    assert [r.report for r in smaller.records] == [
        r.report for r in first.records[: len(smaller.records)]
    ]
    assert len(set(bytes_in_order)) == len(bytes_in_order)


def test_phantom_records_survive_a_process_boundary() -> None:
    record = cohort("xray", 3).records[0]
    copy = pickle.loads(pickle.dumps(record.read_image))
    assert np.array_equal(copy(), record.read_image())


def test_phantom_digest_changes_with_every_parameter() -> None:
    section = PhantomSection(num_patients=4)
    digests = {
        load_phantom(section, image_size=64, seed=1).digest,
        load_phantom(section, image_size=64, seed=2).digest,
        load_phantom(section, image_size=32, seed=1).digest,
        load_phantom(
            PhantomSection(num_patients=4, co_occurrence=0.5), image_size=64, seed=1
        ).digest,
        load_phantom(PhantomSection(num_patients=5), image_size=64, seed=1).digest,
        load_phantom(PhantomSection(num_patients=4, modality="ct"), image_size=64, seed=1).digest,
    }
    assert len(digests) == 6
    assert load_phantom(section, image_size=64, seed=1).digest in digests


def test_phantom_seeds_differ() -> None:
    a, b = cohort("xray", 20, seed=1), cohort("xray", 20, seed=2)
    assert not np.array_equal(a.records[0].read_image(), b.records[0].read_image())
    assert [r.labels for r in a.records] != [r.labels for r in b.records]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("co_occurrence", [0.0, 0.5])
def test_phantom_label_mask_and_report_agree(modality: Modality, co_occurrence: float) -> None:
    dataset = cohort(modality, co_occurrence=co_occurrence)
    seen = set()
    for record in dataset.records:
        findings = view_of(record).findings()
        assert record.labels == (tuple(f.kind for f in findings) or ("normal",))
        if co_occurrence == 0.0:
            assert len(record.labels) == 1
            in_mask = {dataset.classes[i] for i in np.unique(mask_of(record)) if i}
            assert in_mask == set(record.labels) - {"normal"}, record.source
        seen.update(record.labels)
        assert abnormal_passages(record) == set(record.labels) - {"normal"}, record.report
    assert seen == set(dataset.classes)
    several = any(len(record.labels) > 1 for record in dataset.records)
    assert several == (co_occurrence > 0)


def abnormal_passages(record: SourceRecord) -> set[str]:
    """Read the findings back from the text, and check that no sentence denies one of them."""
    wording = WORDINGS[view_of(record).scanner.style]
    found = set()
    text = record.report.rstrip(".;")
    for kind in ("nodule", "effusion", "cardiomegaly", "consolidation"):
        template = getattr(wording, kind).rstrip(".;")
        pattern = re.sub(r"\\\{\w+\\\}", r"[\\w]+", re.escape(template))
        if re.search(pattern, text):
            found.add(kind)
    clear = {
        wording.clear_lungs: {"nodule", "consolidation"},
        wording.clear_pleura: {"effusion"},
        wording.clear_heart: {"cardiomegaly"},
    }
    for sentence, denied in clear.items():
        assert (sentence.rstrip(".;") in text) <= (not denied & found)
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantom_mask_and_report_lie_on_the_side_of_the_finding(modality: Modality) -> None:
    checked = 0
    for record in cohort(modality, 250).records:
        view = view_of(record)
        for finding in view.findings():
            if finding.side == "midline":
                continue
            columns = np.nonzero(mask_of(record))[1]
            middle = 31.5 + 64 * view.pose().shift[0]
            # The image's left is the patient's right.
            assert (columns.mean() < middle) == (finding.side == "right"), record.source
            other = {"right": "left", "left": "right"}[finding.side]
            assert finding.side in record.report.lower()
            assert other not in record.report.lower()
            checked += 1
    assert checked > 100


def test_phantom_report_states_size_of_the_mask() -> None:
    """A nodule's area gives its diameter back, within the pose's magnification and a pixel."""
    section = PhantomSection(num_patients=60, modality="ct")
    checked = 0
    for record in load_phantom(section, image_size=256, seed=3).records:
        if record.labels != ("nodule",):
            continue
        view = view_of(record)
        area = np.count_nonzero(mask_of(record)) / view.pose().scale ** 2
        diameter_mm = 2 * np.sqrt(area / np.pi) * FIELD_OF_VIEW_MM["ct"] / 256
        stated = re.search(r"(\d+) mm", record.report)
        assert stated is not None
        assert float(stated[1]) == pytest.approx(diameter_mm, abs=2.5)
        checked += 1
    assert checked >= 10


def test_phantom_heart_is_as_wide_as_the_report_says() -> None:
    section = PhantomSection(num_patients=60)
    widths, ratios = [], []
    for record in load_phantom(section, image_size=256, seed=3).records:
        if record.labels == ("cardiomegaly",):
            view = view_of(record)
            columns = np.nonzero(mask_of(record).any(axis=0))[0]
            scale = view.pose().scale * view.patient.body.width
            widths.append((columns[-1] - columns[0] + 1) / 256 / scale)
            stated = re.search(r"(\d+)%", record.report)
            assert stated is not None
            ratios.append(float(stated[1]) / 100)
    # Cardiothoracic ratio = width of the heart over width of the thorax.
    measured = np.array(widths) / (2 * THORAX_HALF_WIDTH)
    assert len(ratios) >= 8
    assert np.abs(measured - ratios).max() < 0.05
    assert min(ratios) > 0.5


def test_phantom_findings_change_the_image_where_the_mask_says() -> None:
    """The same patient without the finding differs inside the mask, hardly outside it."""
    for modality in MODALITIES:
        for record in cohort(modality, 60).records[:60]:
            view = view_of(record)
            if not view.patient.findings:
                continue
            quiet = replace(view.scanner, noise=0.0, blur=0.0, border=0.0, marker=False)
            ill = replace(view, scanner=quiet)
            healthy = replace(ill, patient=replace(view.patient, findings=()))
            change = np.abs(
                render_image(ill, 64).astype(float) - render_image(healthy, 64).astype(float)
            )
            mask = mask_of(record) > 0
            assert change[mask].mean() > 4 * change[~mask].mean(), record.source


def test_phantom_findings_never_shrink_between_images() -> None:
    sizes: dict[str, list[float]] = {}
    for record in cohort("ct").records:
        for finding in view_of(record).findings():
            sizes.setdefault(record.patient_id, []).append(finding.extent)
    assert all(list(s) == sorted(s) for s in sizes.values())
    assert any(len(s) > 1 and s[0] < s[-1] for s in sizes.values())


def test_scanners_differ_in_intensity_prevalence_size_and_wording() -> None:
    records = cohort("xray", 600, seed=11).records
    by_scanner: dict[str, list[SourceRecord]] = {}
    for record in records:
        by_scanner.setdefault(record.columns["scanner"], []).append(record)
    assert sorted(by_scanner) == [f"scanner-{n}" for n in (1, 2, 3, 4)]
    means = [np.mean([r.read_image().mean() for r in rs[:30]]) for rs in by_scanner.values()]
    assert max(means) - min(means) > 15
    shares = np.array(
        [
            [np.mean([r.labels == (c,) for r in rs]) for c in ("normal", "nodule", "effusion")]
            for rs in by_scanner.values()
        ]
    )
    assert np.ptp(shares, axis=0).max() > 0.15
    sizes = [len({r.patient_id for r in rs}) for rs in by_scanner.values()]
    assert max(sizes) > 1.3 * min(sizes)
    openings = [{r.report.split()[0] for r in rs} for rs in by_scanner.values()]
    assert all(len(o) == 1 for o in openings)
    assert len(set.union(*openings)) == 4


@pytest.mark.parametrize("num_scanners", [1, 4, 64])
def test_make_scanners_shares_and_prevalences_are_probabilities(num_scanners: int) -> None:
    scanners = make_scanners(9, num_scanners, 4)
    assert sum(s.share for s in scanners) == pytest.approx(1)
    for scanner in scanners:
        assert sum(scanner.prevalence) == pytest.approx(1)
        assert min(scanner.prevalence) >= 0.08
    assert len({s.gamma for s in scanners}) == num_scanners


def test_make_scanners_number_does_not_depend_on_how_many_there_are() -> None:
    few, many = make_scanners(9, 2, 4), make_scanners(9, 8, 4)
    assert [(s.gamma, s.noise, s.prevalence) for s in few] == [
        (s.gamma, s.noise, s.prevalence) for s in many[:2]
    ]


def test_write_report_states_absence_when_nothing_is_found() -> None:
    text = write_report((), modality="xray", style=0)
    assert text == (
        "PA chest radiograph. The lungs are clear. No pleural effusion. The heart size is normal."
    )


def test_write_report_states_side_size_and_zone() -> None:
    nodule = Finding(kind="nodule", side="left", centre=(0.7, 0.3), extent=10 / 400, contrast=0.5)
    text = write_report((nodule,), modality="xray", style=1)
    assert "Left upper zone nodule, 20 mm." in text
    assert "Pleural spaces clear. Heart not enlarged." in text


def test_load_phantom_refuses_images_too_small_for_findings() -> None:
    with pytest.raises(DataError, match="image_size"):
        load_phantom(PhantomSection(num_patients=2), image_size=8, seed=0)
