"""Sites with few labels, in whole runs: whose are held back, who comes next, kills."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from medfed.client import annotating
from medfed.client.annotations import ANNOTATIONS_FILE, Visit, read_visits
from medfed.client.data.site_data import load_site_data
from medfed.client.own_parts import OwnParts
from medfed.client.site import load_site
from medfed.common.errors import DataError, StudyError
from medfed.common.models import trained_names
from medfed.common.models.freezing import normalisation_names
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, parse_study, parse_study_json
from medfed.server import loop
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.report import write_report
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.scarce import labelled_by_round, revealed_table
from medfed.simulations.study import Options, prepare_run, run_study, start_study
from medfed.simulations.sweep import cells_of, study_of

SITES = ("scanner-1", "scanner-2", "scanner-3")
PLAIN = (
    'privacy.unit="none"',
    "training.batch_size=8",
    "training.rounds=4",
    "simulation.resamples=0",
)
ANNOTATED = (
    *PLAIN,
    "simulation.labels.patients=6",
    "simulation.annotation.patients=3",
    'semi_supervised.method="mean_teacher"',
)
Prepare = Callable[..., Path]


@pytest.fixture
def prepare(
    tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that makes a run folder of the tiny study, with some settings, ready to run."""
    monkeypatch.setenv("MEDFED_CACHE", str(cache))

    def make(name: str, *overrides: str) -> Path:
        folder = tmp_path / name / "run"
        folder.parent.mkdir()
        start_study(load_study(tiny, overrides), folder, None, Options())
        prepare_run(folder)
        return folder

    return make


def site_of(run: Path, name: str, arm: str = "federated") -> Any:
    return load_site(run / "arms" / arm / "sites" / name / "site.toml")


def patients(run: Path, name: str, arm: str = "federated") -> dict[str, set[str]]:
    site = site_of(run, name, arm)
    data = load_site_data(site, load_study(run / "study.toml"))
    hidden = set(data.unlabelled.patients) if data.unlabelled else set()
    sides = {"train": set(data.train.patients), "test": set(data.test.patients)}
    return {**sides, "unlabelled": hidden}


def visits(run: Path, name: str) -> list[Visit]:
    return read_visits(site_of(run, name).state_folder / ANNOTATIONS_FILE, "run/federated")


def bits(run: Path) -> list[Any]:
    records = ArmFolder(run / "arms" / "federated").read_rounds()
    return [(record.weights_sha256, record.metrics) for record in records]


def test_labels_are_held_back_by_patient(prepare: Prepare) -> None:
    few = (*PLAIN, "simulation.labels.share=0.25", 'simulation.arms=["federated","pooled"]')
    runs = {
        "all": prepare("all", *PLAIN),
        "some": prepare("some", *PLAIN, "simulation.labels.share=0.6"),
        "few": prepare("few", *few, "simulation.labels.at_sites.scanner-2=0.5"),
    }
    pooled = {"train": set(), "unlabelled": set()}
    for name in SITES:
        whole, some, few = (patients(run, name) for run in runs.values())
        assert whole["unlabelled"] == set()
        for part in (some, few):
            assert part["train"] | part["unlabelled"] == whole["train"]
            assert not part["train"] & part["unlabelled"]
            assert part["test"] == whole["test"]
        share = 0.5 if name == "scanner-2" else 0.25
        assert len(few["train"]) == int(share * len(whole["train"]))
        assert few["train"] < some["train"]
        pooled = {side: pooled[side] | few[side] for side in pooled}
    together = patients(runs["few"], "pooled", "pooled")
    assert {side: together[side] for side in pooled} == pooled


def test_labels_of_a_site_that_is_not_there_are_refused(prepare: Prepare) -> None:
    with pytest.raises(StudyError, match="names scanner-9; the sites are scanner-1"):
        prepare("wrong", *PLAIN, "simulation.labels.at_sites.scanner-9=0.5")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("simulation.labels.share=0.5", "simulation.annotation.every=1"), "depends on all patien"),
        ((*PLAIN, "simulation.annotation.every=1"), "every patient has labels from the start"),
        ((*PLAIN, "semi_supervised.threshold=0.9"), 'it is for "pseudo_labels"'),
        (
            (*PLAIN, 'semi_supervised.method="pseudo_labels"', "semi_supervised.decay=0.9"),
            'it is for "mean_teacher"',
        ),
        (
            ('semi_supervised.method="pseudo_labels"', "semi_supervised.batch_size=9"),
            "drawn at privacy.sample_rate",
        ),
        (
            (
                *PLAIN,
                'semi_supervised.method="pseudo_labels"',
                'task.type="segmentation"',
                'model.name="unet"',
            ),
            "is for classification",
        ),
    ],
    ids=["dp", "all-labelled", "threshold", "decay", "batch", "masks"],
)
def test_what_does_not_go_together_is_refused(
    tiny: Path, overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(StudyError, match=reason):
        load_study(tiny, overrides)


def test_defaults_of_a_method_are_written_out(tiny: Path) -> None:
    study = load_study(tiny, ['semi_supervised.method="pseudo_labels"'])
    assert (study.semi_supervised.threshold, study.semi_supervised.decay) == (0.95, None)
    assert StudyConfig.model_validate_json(study.to_json()) == study


@pytest.mark.slow
def test_annotator_labels_so_many_patients_a_visit_and_a_kill_changes_nothing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = prepare("whole", *ANNOTATED), prepare("cut", *ANNOTATED)
    run_study(whole, Options(workers=1))
    save = loop.save_checkpoint

    def die_in_round_3(*arguments: Any) -> None:
        if arguments[1].record.round_number == 3:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", die_in_round_3)
    with pytest.raises(KeyboardInterrupt):
        run_study(cut, Options(workers=2))
    # The labels of round 3 are there already, and round 3 is asked for again.
    assert [visit.round_number for visit in visits(cut, SITES[0])] == [2, 3]
    monkeypatch.setattr(loop, "save_checkpoint", save)
    run_study(cut, Options(workers=2))
    assert bits(cut) == bits(whole)
    for name in SITES:
        found = visits(whole, name)
        assert visits(cut, name) == found
        assert [(visit.number, visit.round_number) for visit in found] == [(1, 2), (2, 3), (3, 4)]
        labelled = [patient for visit in found for patient in visit.patients]
        assert len(set(labelled)) == len(labelled) == 9
        assert set(labelled) <= patients(whole, name)["unlabelled"]

    page = write_report(whole).read_text()
    assert "labels 3 patients of each site" in page
    run = load_run(whole)
    assert labelled_by_round(run) == [(1, 18), (2, 27), (3, 36), (4, 45)]
    table = revealed_table(run)
    assert table is not None
    assert [row[2:4] for row in table.rows] == [("0", "18"), *(("9", str(n)) for n in (27, 36, 45))]
    # Whom a site chose stays there.
    told = (whole / "arms" / "federated" / "rounds.jsonl").read_text() + page
    assert not any(p in told for name in SITES for v in visits(whole, name) for p in v.patients)


@pytest.mark.slow
def test_acquisitions_choose_different_patients_and_a_late_site_catches_up(
    prepare: Prepare,
) -> None:
    late = (*ANNOTATED, "simulation.failures.first_round.scanner-2=3", "federation.min_sites=1")
    chosen = {}
    for how in ("entropy", "margin", "random"):
        run = prepare(how, *late, f'simulation.annotation.acquisition="{how}"')
        run_study(run, Options())
        chosen[how] = [set(visit.patients) for visit in visits(run, "scanner-1")]
        found = [(v.number, v.round_number, len(v.patients)) for v in visits(run, "scanner-2")]
        assert found == [(2, 3, 6), (3, 4, 3)]
    assert chosen["entropy"] != chosen["random"]
    assert chosen["margin"] != chosen["random"]


def test_scores_are_by_the_model_with_a_site_s_own_normalisations(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[set[str], StateDict]] = {}
    score = annotating.uncertainties

    def listening(model: nn.Module, weights: StateDict, *rest: Any) -> Any:
        missing = set(trained_names(model)) - set(weights)
        seen[rest[2].site] = missing, {n: weights[n] for n in normalisation_names(model)}
        return score(model, weights, *rest)

    monkeypatch.setattr(annotating, "uncertainties", listening)
    masks = (
        'task.type="segmentation"',
        'task.classes=["nodule","effusion","cardiomegaly"]',
        'model.name="unet"',
        'model.norm="batch"',
        "model.widths=[4,8]",
        "federation.algorithm=fedbn",
    )
    few = ("simulation.labels.patients=6", "simulation.annotation.patients=3")
    run = prepare("norms", *PLAIN, *few, *masks, "training.rounds=2")
    # One network for all sites: what the last one left in it is not the next one's.
    run_study(run, Options(workers=1))
    arm = run / "arms" / "federated"
    digest = parse_study_json((arm / "study.json").read_text()).digest()
    assert seen.keys() == set(SITES)
    for name, (missing, norms) in seen.items():
        assert not missing
        part = OwnParts(site_of(run, name).state_folder, "run/federated", digest).after(1, norms)
        assert part is not None
        assert all((norms[key] == part[key]).all() for key in norms)


def test_damaged_annotations_stop_the_site(tmp_path: Path) -> None:
    path = tmp_path / ANNOTATIONS_FILE
    assert read_visits(path, "run") == []
    path.write_text('{"run": [{"visit": 1}]}')
    with pytest.raises(DataError, match="is damaged"):
        read_visits(path, "run")


def test_cases_of_a_sweep_set_what_belongs_together(tiny: Path) -> None:
    table = load_study(tiny, PLAIN).model_dump(mode="json", exclude_none=True)
    cases = [
        {"simulation.labels.share": 0.5},
        {"simulation.labels.share": 0.5, "semi_supervised.method": "pseudo_labels"},
        {"semi_supervised.method": "mean_teacher", "semi_supervised.decay": 0.5},
    ]
    study = parse_study({**table, "sweep": {"cases": cases}}, "test")
    cells = cells_of(study)
    assert [cell.label for cell in cells] == [
        "share 0.5",
        "share 0.5, method pseudo_labels",
        "method mean_teacher, decay 0.5",
    ]
    last = study_of(study, cells[2], 7)
    assert (last.semi_supervised.decay, last.simulation.labels.share) == (0.5, 1.0)  # type: ignore[union-attr]
    both = {"cases": cases, "vary": {"simulation.labels.share": [0.1, 0.2]}}
    with pytest.raises(StudyError, match="is in vary and in cases"):
        parse_study({**table, "sweep": both}, "test")
