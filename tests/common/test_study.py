"""The study file: validated whole, with errors that name the key and the way out."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.common.study_file import (
    load_study,
    names_of,
    parse_study,
    parse_study_json,
    study_to_toml,
)

STUDIES = Path(__file__).parents[2] / "studies"


def minimal() -> dict[str, Any]:
    return {
        "study": {"name": "s"},
        "task": {"classes": ["a", "b"]},
        "training": {"local_steps": 5},
    }


def changed(section: str, **values: Any) -> dict[str, Any]:
    table = minimal()
    table[section] = {**table.get(section, {}), **values}
    return table


SHARED_NOISE = {"enabled": True, "distributed_noise": "discrete_gaussian"}


def per_site(**values: Any) -> dict[str, Any]:
    return changed("privacy", unit="site", site={"expected_sites": 8, **values})


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda p: p.stem)
def test_ready_made_study_is_valid_and_survives_writing(path: Path) -> None:
    study = load_study(path)
    assert parse_study(tomllib.loads(study_to_toml(study)), "again") == study
    assert parse_study_json(study.to_json()) == study


@pytest.mark.parametrize(
    ("table", "fragments"),
    [
        (changed("training", learning_rat=1), ["training.learning_rat", "learning_rate?"]),
        ({**minimal(), "trainning": {}}, ["trainning", "training?"]),
        (changed("privacy", noise_multiplier=0), ["privacy.noise_multiplier", "0.1", "unit"]),
        (changed("privacy", noise_multiplier="x"), ["privacy.noise_multiplier", "'x'"]),
        (changed("privacy", sample_rate=1.5), ["privacy.sample_rate"]),
        (changed("training", local_epochs=1), ["exactly one of local_epochs and local_steps"]),
        (changed("compute", precision="bfloat16"), ["seven digits", 'privacy.unit = "none"']),
        (changed("model", name="resnet18", norm="batch"), ["BatchNorm", 'model.norm = "group"']),
        (changed("federation", weighting="examples"), ["weighting", "private", "uniform"]),
        (changed("task", classes=["a", "a"]), ["twice"]),
        (changed("task", classes=["a"]), ["task: expected at least 2 classes, got 1"]),
        (changed("study", name="../x"), ["study.name"]),
        (changed("study", seed=-1), ["study.seed"]),
        (
            changed("simulation", dataset="phantom", partition={"method": "natural"}),
            ["simulation.partition", "column"],
        ),
        (changed("simulation", dataset="phantom", arms=["pooled"]), ["federated"]),
        (changed("privacy", unit="site"), ["privacy.site.expected_sites"]),
        (
            {**per_site(), "federation": {"weighting": "public"}},
            ["federation.weighting", "all weigh the same"],
        ),
        (
            {**per_site(), "secure_aggregation": {"enabled": True}},
            ["secure_aggregation.distributed_noise", "cannot clip"],
        ),
        (
            {**minimal(), "secure_aggregation": {"distributed_noise": "discrete_gaussian"}},
            ['privacy.unit = "site"', "Set both"],
        ),
        (
            {**per_site(), "federation": {"fraction": 0.5}, "secure_aggregation": SHARED_NOISE},
            ["federation.fraction", "Set fraction = 1"],
        ),
        (
            {**per_site(adaptive_quantile=0.5), "secure_aggregation": SHARED_NOISE},
            ["adaptive_quantile", "Remove one"],
        ),
        (
            {
                **changed("privacy", unit="none"),
                "federation": {"weighting": "examples"},
                "secure_aggregation": {"enabled": True},
            },
            ["federation.weighting", "would be told each site's number"],
        ),
        (
            {**per_site(), "task": {"type": "report"}, "model": {"name": "report_lstm"}},
            ["vocabulary"],
        ),
        (changed("secure_aggregation", threshold=0.5), ["secure_aggregation.threshold"]),
        (
            {**minimal(), "federation": {"min_sites": 1}, "secure_aggregation": {"enabled": True}},
            ["federation.min_sites = 1", "that site's update", "2 or more"],
        ),
        (changed("task", classes="normal"), ["task.classes: Input should be a list, e.g."]),
    ],
)
def test_study_refuses_with_key_and_way_out(table: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(table, "study.toml")
    for fragment in ["study.toml", *fragments]:
        assert fragment in str(caught.value)


def test_study_refuses_local_epochs_under_privacy() -> None:
    table = minimal()
    table["training"] = {"local_epochs": 1}
    with pytest.raises(StudyError, match="local_steps"):
        parse_study(table, "s")


def test_study_lists_all_problems_at_once() -> None:
    table = changed("training", batch_size=0, learning_rate=-1)
    with pytest.raises(StudyError) as caught:
        parse_study(table, "s")
    assert "2 problem(s)" in str(caught.value)


def test_load_study_names_missing_file_and_broken_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="found none"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[study]\nname = \n")
    with pytest.raises(StudyError, match="line 2"):
        load_study(tmp_path / "bad.toml")
    with pytest.raises(StudyError, match="folder"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.learning_rate=0.01", "training", "learning_rate", 0.01),
        ("study.name=other", "study", "name", "other"),
        ('task.classes=["x", "y"]', "task", "classes", ("x", "y")),
        ("data.image_size = 32", "data", "image_size", 32),
    ],
)
def test_override_sets_one_value(override: str, section: str, key: str, value: object) -> None:
    study = load_study(STUDIES / "demo.toml", [override])
    assert getattr(getattr(study, section), key) == value


def test_override_without_a_value_takes_the_key_out() -> None:
    steps = ["training.local_steps=3", "training.local_epochs="]
    study = load_study(STUDIES / "busi.toml", steps)
    assert (study.training.local_steps, study.training.local_epochs) == (3, None)
    with pytest.raises(StudyError, match="exactly one of local_epochs"):
        load_study(STUDIES / "busi.toml", steps[:1])
    assert load_study(STUDIES / "busi.toml", ["training.batch_size=", "model.freeze="]) == (
        load_study(STUDIES / "busi.toml", ["training.batch_size=32"])
    )


def test_override_reaches_a_name_that_holds_a_dot() -> None:
    poisoned = 'simulation.failures.poisoned."st.-mary"=scale'
    simulation = load_study(STUDIES / "demo.toml", [poisoned]).simulation
    assert simulation is not None
    assert dict(simulation.failures.poisoned) == {"st.-mary": "scale"}
    assert names_of("""a."b.c".'d"e.f'.g""") == ["a", "b.c", 'd"e.f', "g"]
    assert names_of('a."b') == ["a", '"b']  # no TOML: told as an unknown key


@pytest.mark.parametrize("override", ["training", "rounds=3", "training.rounds", ".x=1"])
def test_override_refuses_malformed(override: str) -> None:
    with pytest.raises(StudyError, match="--set"):
        load_study(STUDIES / "demo.toml", [override])


def test_study_for_sites_holds_no_simulation_and_digest_ignores_it() -> None:
    study = load_study(STUDIES / "demo.toml")
    assert study.for_sites().simulation is None
    assert study.digest() == study.for_sites().digest()
    other = load_study(STUDIES / "demo.toml", ["training.learning_rate=0.123"])
    assert other.digest() != study.digest()


def test_copy_with_other_values_has_its_own_digest() -> None:
    study = load_study(STUDIES / "demo.toml")
    before = study.digest(), study.to_json(), hash(study)
    training = study.training.model_copy(update={"learning_rate": 0.123})
    other = study.model_copy(update={"training": training})
    loaded = load_study(STUDIES / "demo.toml", ["training.learning_rate=0.123"])
    assert (other.digest(), other.to_json()) == (loaded.digest(), loaded.to_json())
    assert other.digest() != study.digest()
    assert (study.digest(), study.to_json(), hash(study)) == before
    assert study == load_study(STUDIES / "demo.toml")  # what was worked out is no value


def test_weighting_is_public_under_privacy_and_examples_without() -> None:
    assert parse_study(minimal(), "s").weighting == "public"
    assert parse_study(changed("privacy", unit="none"), "s").weighting == "examples"
    assert parse_study(per_site(), "s").weighting == "uniform"
    masked = {**changed("privacy", unit="none"), "secure_aggregation": {"enabled": True}}
    assert parse_study(masked, "s").weighting == "public"
    assert parse_study({**per_site(), "secure_aggregation": SHARED_NOISE}, "s").privacy.enabled


def test_every_key_is_documented() -> None:
    def walk(model: type, prefix: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            kind = field.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                missing += walk(kind, f"{prefix}{name}.")
            elif not field.description and prefix:
                missing.append(prefix + name)
        return missing

    assert walk(StudyConfig, "") == []
