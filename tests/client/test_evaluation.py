"""What of an evaluation may leave: groups of sums by policy, and nothing about few patients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medfed.client.data.site_data import ImageSet
from medfed.client.data.store import Store
from medfed.client.evaluation import countable_images, evaluate, evaluate_for_release
from medfed.client.site import PolicySection
from medfed.client.training import Round
from medfed.common.models import build_model
from medfed.common.state_dicts import read_state
from medfed.common.study import StudyConfig
from medfed.common.tasks import make_task, pooled_metrics

SIZE = 16
WORDS = ("heart", "normal", "effusion", "nodule", ".", "no")
REPORTS = {0: "Heart normal.", 1: "Effusion. No nodule.", 2: "Nodule."}
STUDIES: dict[str, dict[str, Any]] = {
    "multiclass": {"task": {"classes": ["a", "b", "c"]}},
    "ordinal": {"task": {"classes": ["a", "b", "c"], "mode": "ordinal"}},
    "multilabel": {"task": {"classes": ["a", "b", "c"], "mode": "multilabel"}},
    "segmentation": {
        "task": {"type": "segmentation", "classes": ["a", "b", "c"]},
        "model": {"name": "unet", "widths": [4, 8]},
    },
    "report": {
        "task": {
            "type": "report",
            "report": {
                "max_words": 5,
                "findings": {"effusion": ["effusion"], "nodule": ["nodule"]},
            },
        },
        "model": {"name": "report_lstm"},
    },
}


def study_of(kind: str) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "evaluation", "seed": 1},
            "data": {"image_size": SIZE},
            "training": {"local_steps": 1},
            "privacy": {"unit": "none"},
            **STUDIES[kind],
        }
    )


def data_of(kind: str, patients: list[str], shown: list[tuple[int, ...]]) -> ImageSet:
    """Images of `patients`, each showing some of the labels 0 to 2."""
    study, size = study_of(kind), len(patients)
    table = np.zeros((size, 3), np.uint8)
    for row, labels in enumerate(shown):
        table[row, list(labels)] = 1
    rng = np.random.default_rng(0)
    masks, reports = None, ("",) * size
    labels: Any = table
    if kind == "segmentation":
        masks = np.zeros((size, SIZE, SIZE), np.uint8)
        for row, own in enumerate(shown):
            for label in own:
                masks[row, 4 * label : 4 * label + 3, 2:9] = label + 1
    elif kind == "report":
        reports = tuple(" ".join(REPORTS[label] for label in own) for own in shown)
        labels = table[:, 1:]
    elif kind != "multilabel":
        labels = table.argmax(axis=1)
    store = Store(
        folder=Path(),
        key="",
        classes=study.task.label_names,
        mode=study.task.mode,
        images_NCHW=rng.integers(0, 256, (size, 1, SIZE, SIZE), dtype=np.uint8),
        masks_NHW=masks,
        labels=labels,
        patients=tuple(patients),
        splits=("",) * size,
        columns={},
        reports=reports,
        record_ids=tuple(map(str, range(size))),
        num_quarantined=0,
        task=study.task.type,
    )
    return ImageSet((store,), np.zeros(size, np.int64), np.arange(size))


def only(data: ImageSet, chosen: list[int]) -> ImageSet:
    return ImageSet(data.stores, data.store_index[chosen], data.row_index[chosen])


def sums_of(kind: str, data: ImageSet, **policy: Any) -> tuple[Any, dict[str, str]]:
    study = study_of(kind)
    task = make_task(study, WORDS)
    model = build_model(study, task.num_outputs)
    this = Round(study, "one", 1, torch.device("cpu"))
    rules = PolicySection.model_validate({"release_evaluation": True, **policy})
    found = evaluate_for_release(model, read_state(model), data, task, this, rules)
    return found.sums, found.withheld


def all_sums(kind: str, data: ImageSet) -> dict[str, Any]:
    study = study_of(kind)
    task = make_task(study, WORDS)
    model = build_model(study, task.num_outputs)
    return evaluate(
        model, read_state(model), data, task, Round(study, "one", 1, torch.device("cpu"))
    )


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


# Six patients with label 0, five with label 1, of whom one also has label 2 in a second image and
# another shares label 2: two patients show it.
PATIENTS = [f"p{n}" for n in range(6)] + [f"q{n}" for n in range(5)] + ["q0", "r"]
SHOWN: list[tuple[int, ...]] = [(0,)] * 6 + [(1,)] * 5 + [(2,), (2,)]


@pytest.mark.parametrize("kind", STUDIES)
def test_what_few_patients_show_leaves_no_trace_in_any_sum(kind: str) -> None:
    data = data_of(kind, PATIENTS, SHOWN)
    kept = list(range(11))
    sums, withheld = sums_of(kind, data, min_patients_per_count=5)
    assert equal(sums, all_sums(kind, only(data, kept)))
    assert "rare" in " ".join(withheld)
    # Whatever these images showed and whoever they are of, the sums are the same, bit for bit.
    others = data_of(kind, [*PATIENTS[:-1], "s"], SHOWN)
    again, _ = sums_of(kind, others, min_patients_per_count=5)
    assert equal(sums, again)
    # With two patients a count, everything is there.
    whole, withheld = sums_of(kind, data, min_patients_per_count=2)
    assert equal(whole, all_sums(kind, data))
    assert withheld == {}
    assert not equal(whole, sums)


@pytest.mark.parametrize("kind", STUDIES)
def test_pooled_figures_leave_a_site_out_of_what_it_suppresses(kind: str) -> None:
    task = make_task(study_of(kind), WORDS)
    here = data_of(kind, PATIENTS, SHOWN)
    there = data_of(kind, [f"t{n}" for n in range(30)], [(0,)] * 10 + [(1,)] * 10 + [(2,)] * 10)
    parts = [sums_of(kind, data)[0] for data in (here, there)]
    exact = [all_sums(kind, only(here, list(range(11)))), all_sums(kind, there)]
    assert pooled_metrics(task, parts) == pooled_metrics(task, exact)
    assert pooled_metrics(task, parts)["num_images"] == 41.0
    name = {"report": "finding_recall/nodule", "segmentation": "dice_present/c"}.get(
        kind, "sensitivity/c"
    )
    # Of the other site's ten patients alone, not divided by this one's images.
    assert pooled_metrics(task, parts)[name] == task.metrics(parts[1])[name]


def test_leaving_images_out_goes_on_until_nothing_is_rare() -> None:
    # Two patients show 2; both also show 1, which without them only four patients show.
    patients = [f"p{n}" for n in range(20)]
    shown: list[tuple[int, ...]] = [(1, 2)] * 2 + [(1,)] * 4 + [(0,)] * 7 + [()] * 7
    data = data_of("multilabel", patients, shown)
    assert countable_images(data, 5).tolist() == list(range(6, 20))
    assert countable_images(data, 4).tolist() == list(range(2, 20))
    assert countable_images(data, 2).tolist() == list(range(20))


def test_what_few_patients_lack_is_as_telling_as_what_few_show() -> None:
    patients = [f"p{n}" for n in range(12)]
    data = data_of("segmentation", patients, [(0,)] * 10 + [()] * 2)
    assert countable_images(data, 5).tolist() == list(range(10))


def test_images_of_one_patient_count_once() -> None:
    data = data_of("multiclass", ["p"] * 9 + [f"q{n}" for n in range(5)], [(0,)] * 9 + [(1,)] * 5)
    assert countable_images(data, 5).tolist() == list(range(9, 14))


def test_reports_without_words_are_nobodys() -> None:
    patients = [f"p{n}" for n in range(9)]
    data = data_of("report", patients, [(0,)] * 4 + [()] * 5)
    sums, withheld = sums_of("report", data)
    assert sums is None
    assert "fewer than 5" in withheld["evaluation"]
    sums, _ = sums_of("report", data_of("report", patients, [(0,)] * 5 + [()] * 4))
    assert sums["count"] == 5


@pytest.mark.parametrize("kind", STUDIES)
def test_site_with_few_held_out_patients_releases_nothing(kind: str) -> None:
    patients = ["a", "a", "a", "b", "b", "c", "d"]
    data = data_of(kind, patients, [(0,)] * 7)
    for least, leaves in ((4, True), (5, False)):
        sums, withheld = sums_of(kind, data, min_patients_per_count=least)
        assert (sums is not None) == leaves
        assert ("evaluation" in withheld) != leaves


@pytest.mark.parametrize("kind", STUDIES)
def test_only_the_families_that_the_policy_names_leave(kind: str) -> None:
    data, task = data_of(kind, PATIENTS, SHOWN), make_task(study_of(kind), WORDS)
    whole, _ = sums_of(kind, data)
    for family, names in task.families.items():
        sums, withheld = sums_of(kind, data, release_metrics=[family])
        assert set(sums) == {"count", *names}
        assert all(np.array_equal(sums[name], whole[name]) for name in sums)
        assert set(task.families) - {family} <= set(withheld)
    everything, _ = sums_of(kind, data, release_metrics=list(task.families))
    assert equal(everything, whole)


def test_nothing_leaves_if_the_policy_names_families_of_other_tasks_only() -> None:
    data = data_of("multiclass", PATIENTS, SHOWN)
    sums, withheld = sums_of("multiclass", data, release_metrics=["text", "overlap"])
    assert sums is None
    assert set(withheld) >= {"loss", "tables", "scores", "calibration"}


def test_nothing_leaves_without_release_evaluation() -> None:
    sums, withheld = sums_of(
        "multiclass", data_of("multiclass", PATIENTS, SHOWN), release_evaluation=False
    )
    assert sums is None
    assert set(withheld) == {"evaluation"}
