"""`[simulation.failures]`: drop-out, late sites and poisoned updates, in whole runs."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import RunError, StudyError
from medfed.common.seeding import numpy_rng
from medfed.common.study_file import load_study
from medfed.server.checkpoint import read_weights
from medfed.server.records import ArmFolder, RoundRecord

ROUNDS = 6
BASE = (
    *("--set", f"training.rounds={ROUNDS}"),
    *("--set", "federation.min_sites=1"),
    *("--set", "simulation.resamples=0"),
    "--quiet",
)


def rounds_of(run: Path) -> list[RoundRecord]:
    return ArmFolder(run / "arms" / "federated").read_rounds()


def sha256_of(run: Path) -> str:
    file = run / "arms" / "federated" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
def test_sites_drop_out_as_the_seed_says_and_the_rest_go_on(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    failing = (*BASE, "--set", "simulation.failures.drop_out=0.4")
    medfed("simulate", tiny, "--out", tmp_path / "one", *failing, "--workers", 1)
    medfed("simulate", tiny, "--out", tmp_path / "two", *failing, "--workers", 3)
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    medfed("simulate", tiny, "--out", tmp_path / "whole", *BASE)
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "whole")

    seed, answered, expected = load_study(tiny).study.seed, [], []
    for record in rounds_of(tmp_path / "one"):
        for name, site in record.sites.items():
            answered.append(site.status == "ok")
            draw = numpy_rng(seed, "drop-out", record.round_number, name).random()
            expected.append(draw >= 0.4)
    assert answered == expected
    assert 0 < sum(answered) < len(answered)
    statuses = {
        site.status for record in rounds_of(tmp_path / "one") for site in record.sites.values()
    }
    assert statuses == {"ok", "failed"}


@pytest.mark.parametrize(
    "failing", ["drop_out=0.9", "stragglers.scanner-2=1.0", "first_round.scanner-2=4"]
)
def test_too_few_left_by_simulated_failures_is_no_reason_to_resume(  # type: ignore[no-untyped-def]
    medfed, tiny, tmp_path, failing
) -> None:
    asked = ("--set", f"simulation.failures.{failing}", "--set", "federation.min_sites=3")
    run = tmp_path / "run"
    said = medfed("simulate", tiny, "--out", run, *BASE, *asked, code=RunError.exit_code)
    assert "in a resumed run just the same" in said.stderr
    assert said.stderr.count("tart anew") == 1
    assert "a lower federation.min_sites than 3" in said.stderr
    assert "error 2" not in said.stderr
    assert "are back" not in said.stderr


@pytest.mark.slow
def test_a_site_joins_in_its_round(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    late = "simulation.failures.first_round.scanner-2=4"
    medfed("simulate", tiny, "--out", tmp_path / "run", *BASE, "--set", late)
    seen = [record.sites["scanner-2"].status for record in rounds_of(tmp_path / "run")]
    assert seen == ["failed"] * 3 + ["ok"] * 3
    others = {
        site.status
        for record in rounds_of(tmp_path / "run")
        for name, site in record.sites.items()
        if name != "scanner-2"
    }
    assert others == {"ok"}


@pytest.mark.slow
def test_a_straggler_spends_and_is_not_in_the_mean(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    late = ("--set", "simulation.failures.stragglers.scanner-2=1.0")
    absent = ("--set", f"simulation.failures.first_round.scanner-2={ROUNDS + 1}")
    medfed("simulate", tiny, "--out", tmp_path / "late", *BASE, *late)
    medfed("simulate", tiny, "--out", tmp_path / "absent", *BASE, *absent)
    # The others train as if it were not there.
    assert sha256_of(tmp_path / "late") == sha256_of(tmp_path / "absent")
    statuses = [record.sites["scanner-2"].status for record in rounds_of(tmp_path / "late")]
    assert statuses == ["late"] * ROUNDS

    def spent(run: str) -> int:
        ledger = tmp_path / run / "arms/federated/sites/scanner-2/state/ledger.jsonl"
        return ledger.read_text().count('"round_number"') if ledger.exists() else 0

    assert (spent("late"), spent("absent")) == (ROUNDS, 0)
    page = (tmp_path / "late" / "report.html").read_text()
    assert "scanner-2 trains and answers after the deadline" in page
    assert "does not agree" not in page
    assert f"charged for {ROUNDS} rounds that it did not answer in time" in page
    # Left out of the training, it is judged as all are.
    figures = (tmp_path / "absent" / "tables" / "figures.csv").read_text()
    assert "\nfederated,scanner-2,auroc," in figures


def test_stragglers_are_refused_where_nobody_can_be_late(tiny: Path) -> None:
    late = "simulation.failures.stragglers.scanner-2=0.5"
    assert load_study(tiny, [late]).simulation is not None
    with pytest.raises(StudyError, match=r"nobody is late there\. Set simulation\.pace\.seconds"):
        load_study(tiny, [late, "federation.algorithm=fedbuff", "privacy.unit=none",
                          "training.batch_size=8"])  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["sign_flip", *(pytest.param(k, marks=pytest.mark.slow) for k in ("scale", "noise"))]
)
def test_a_poisoned_update_is_what_it_is_said_to_be(medfed, tiny, tmp_path, kind) -> None:  # type: ignore[no-untyped-def]
    # One site, one round, no privacy: the global model moves by that site's update alone.
    alone = (
        *("--set", "training.rounds=1", "--set", "federation.min_sites=1"),
        *("--set", 'privacy.unit="none"', "--set", 'simulation.partition.method="iid"'),
        *("--set", "simulation.partition.num_sites=1", "--set", "simulation.resamples=0"),
        *("--set", "training.batch_size=8", "--quiet"),
    )
    poison = ("--set", f'simulation.failures.poisoned.site-1="{kind}"')
    strength = ("--set", "simulation.failures.strength=3.0")
    medfed("simulate", tiny, "--out", tmp_path / "clean", *alone)
    medfed("simulate", tiny, "--out", tmp_path / "poisoned", *alone, *poison, *strength)
    medfed(
        "simulate",
        tiny,
        "--out",
        tmp_path / "start",
        *alone,
        "--set",
        "training.learning_rate=1e-30",
    )

    def weights(name: str) -> np.ndarray:
        file = tmp_path / name / "arms" / "federated" / "model.safetensors"
        names = [*read_names(file)]
        arrays = read_weights(file, names)
        return np.concatenate([arrays[n].reshape(-1).astype(np.float64) for n in names])

    clean = weights("clean") - weights("start")
    poisoned = weights("poisoned") - weights("start")
    ratio = np.linalg.norm(poisoned) / np.linalg.norm(clean)
    assert ratio == pytest.approx(3.0, rel=1e-3)
    cosine = clean @ poisoned / np.linalg.norm(clean) / np.linalg.norm(poisoned)
    expected = {"sign_flip": -1.0, "scale": 1.0, "noise": 0.0}[kind]
    assert cosine == pytest.approx(expected, abs=0.05)


def read_names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "np") as opened:
        return sorted(opened.keys())


def test_more_sites_than_there_are_cannot_be_asked_for(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    asked = ("--set", "federation.min_sites=4")
    done = medfed("simulate", tiny, "--out", run, *asked, "--quiet", code=2)
    assert "min_sites is 4, and the partition makes 3 sites: scanner-1" in done.stderr
    assert not run.exists()
    assert "scanner-3" in medfed("data", "partition", tiny, *asked).stdout


def test_a_site_that_does_not_exist_cannot_fail(medfed, tiny, tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = medfed(
        *("simulate", tiny, "--out", tmp_path / "run", *BASE),
        *("--set", "simulation.failures.first_round.scanner-9=2"),
        code=2,
    )
    assert "scanner-9; the sites are scanner-1, scanner-2, scanner-3" in done.stderr
    assert not (tmp_path / "run").exists()


def test_masked_updates_are_not_poisoned(tiny: Path) -> None:
    with pytest.raises(StudyError, match="masked before it could be poisoned"):
        load_study(
            tiny,
            [
                'privacy.unit="none"',
                "training.batch_size=8",
                "secure_aggregation.enabled=true",
                'simulation.failures.poisoned.scanner-1="scale"',
            ],
        )
