"""Studies that ask for statistics: charged, kept, shown, harmonised; otherwise without effect."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.client.data.site_data import load_site_data
from medfed.client.data.store import open_store
from medfed.client.site import load_site
from medfed.client.statistics import harmonised_data
from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.harmonisation import distance, quantiles
from medfed.common.ledger import Ledger
from medfed.common.study_file import load_study, parse_study_json
from medfed.server.records import ArmFolder
from medfed.server.statistics import reference_of_run

NOISY = (
    *("--set", "statistics.collect=true"),
    *("--set", "statistics.noise_multiplier=2.0"),
    *("--set", "statistics.bins=16"),
)
PLAIN = ("--set", "privacy.unit=none", "--set", "training.batch_size=8")
COLLECT = ("--set", "statistics.collect=true", "--set", "statistics.min_count=5")
HARMONISE = ("--set", "data.harmonise=histogram")


def arm_of(run: Path, arm: str = "federated") -> Path:
    return run / "arms" / arm


def weights_of(run: Path) -> str:
    return hashlib.sha256((arm_of(run) / "model.safetensors").read_bytes()).hexdigest()


def spends_of(run: Path) -> dict[str, list[tuple[str, int]]]:
    return {
        folder.parent.name: [
            (entry.spend.kind, entry.spend.round_number) for entry in Ledger(folder).entries()
        ]
        for folder in sorted((arm_of(run) / "sites").glob("*/state"))
    }


def test_statistics_with_noise_are_charged_before_the_rounds_and_shown(
    medfed: Any, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = medfed("simulate", tiny, "--out", run, *NOISY, *HARMONISE)
    assert "3 of 3 sites described their training data" in done.stderr
    expected = [("statistics", 0), ("training", 1), ("training", 2), ("training", 3)]
    assert set(map(tuple, spends_of(run).values())) == {tuple(expected)}
    cards = json.loads((arm_of(run) / "statistics.json").read_text())["sites"]
    last = ArmFolder(arm_of(run)).read_rounds()[-1]
    first, all_of_it = GaussianEvent(2.0, 1.0, 1), GaussianEvent(1.0, 0.3, 9)
    for name, card in cards.items():
        assert (card["noise"], card["epsilon"]) == ("seeded", epsilon([first], 1e-3))
        assert last.sites[name].epsilon == epsilon([first, all_of_it], 1e-3)
    page = (run / "report.html").read_text()
    assert "Data cards" in page
    assert "card-scanner-2" in page
    assert (run / "figures" / "cards.svg").exists()
    assert "do not agree" not in page

    site = arm_of(run) / "sites" / "scanner-1" / "site.toml"
    assert "statistics" in medfed("site", "ledger", "show", site).stdout
    left = medfed("site", "releases", site, "--json").stdout
    [release] = [r for r in json.loads(left)["releases"] if r["kind"] == "statistics"]
    costs = {q["name"]: q["protection"] for q in release["quantities"]}
    assert {costs[name] for name in ("patients", "classes", "intensities")} == {"dp"}


@pytest.mark.slow
def test_a_resumed_run_says_the_same_and_pays_no_second_time(
    medfed: Any, tiny: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for run in (whole, cut):
        medfed("simulate", tiny, "--out", run, *NOISY, *HARMONISE)
    assert weights_of(whole) == weights_of(cut)
    before = spends_of(cut)
    # As though the server had died before it wrote anything down.
    arm = arm_of(cut)
    for name in ("statistics.json", "outcome.json", "model.safetensors", "rounds.jsonl"):
        (arm / name).unlink()
    for path in (arm / "checkpoint").iterdir():
        path.unlink()
    medfed("simulate", "--resume", cut)
    assert spends_of(cut) == before
    assert weights_of(cut) == weights_of(whole)
    ours, theirs = ((arm_of(run) / "statistics.json").read_bytes() for run in (whole, cut))
    assert ours == theirs


@pytest.mark.slow
def test_statistics_alone_change_no_bit_of_the_model(
    medfed: Any, tiny: Path, tmp_path: Path
) -> None:
    runs = {"without": (), "with": COLLECT, "harmonised": (*COLLECT, *HARMONISE)}
    for name, more in runs.items():
        medfed("simulate", tiny, "--out", tmp_path / name / "run", *PLAIN, *more)
    found = {name: weights_of(tmp_path / name / "run") for name in runs}
    assert found["with"] == found["without"] != found["harmonised"]
    assert not (arm_of(tmp_path / "without" / "run") / "statistics.json").exists()
    page = (tmp_path / "without" / "run" / "report.html").read_text()
    assert "Data cards" not in page


@pytest.mark.slow
def test_harmonised_sites_lie_closer_together_and_so_does_the_pooled_arm(
    medfed: Any, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arms = ("--set", 'simulation.arms=["federated","pooled","local"]')
    medfed("simulate", tiny, "--out", run, *PLAIN, *COLLECT, *HARMONISE, *arms)
    arm = arm_of(run)
    study = parse_study_json((arm / "study.json").read_text())
    reference = reference_of_run(arm, study)
    plan = ArmFolder(arm).read_plan()
    before, after = [], []
    for path in sorted((arm / "sites").glob("*/site.toml")):
        site = load_site(path)
        data = load_site_data(site, study)
        mapped = harmonised_data(data, study, site, run=plan.run, reference=reference)
        for found, images in ((before, data.train), (after, mapped.train)):
            pixels = images.images_NCHW(np.arange(len(images)))
            function = quantiles(np.bincount(pixels.ravel(), minlength=256).astype(float))
            assert function is not None
            found.append(function)
    apart = [max(distance(a, b) for a in found for b in found) for found in (before, after)]
    assert apart[1] < apart[0] / 3

    # The pooled arm's images were mapped beforehand; who trains alone has nobody to be like.
    pooled, local = (
        ArmFolder(arm_of(run, name)).read_plan() for name in ("pooled", "local-scanner-1")
    )
    assert "harmonised beforehand" in pooled.note
    assert "Without harmonised grey levels" in local.note
    stores = {
        name: open_store(Path(load_site(path).data.stores[0]))
        for name, path in (
            ("federated", arm / "sites" / "scanner-1" / "site.toml"),
            ("pooled", arm_of(run, "pooled") / "sites" / "scanner-1" / "site.toml"),
            ("local", arm_of(run, "local-scanner-1") / "sites" / "scanner-1" / "site.toml"),
        )
    }
    assert stores["local"].key == stores["federated"].key != stores["pooled"].key
    assert stores["pooled"].record_ids == stores["federated"].record_ids
    for name in ("pooled", "local-scanner-1"):
        alone = parse_study_json((arm_of(run, name) / "study.json").read_text())
        assert (alone.data.harmonise, alone.statistics.collect) == ("none", False)


def test_a_site_that_says_nothing_leaves_a_study_that_harmonises(
    medfed: Any, tiny: Path, tmp_path: Path
) -> None:
    from medfed.simulations.study import Options, prepare_run, run_study, start_study

    medfed("--version")  # sets the cache
    overrides = ["privacy.unit=none", "training.batch_size=8", *COLLECT[1::2], *HARMONISE[1::2]]
    study, run = load_study(tiny, overrides), tmp_path / "run"
    start_study(study, run, None, Options())
    prepare_run(run)
    site = arm_of(run) / "sites" / "scanner-3" / "site.toml"
    site.write_text(site.read_text().replace('"suppressed"', '"never"'))
    run_study(run, Options(workers=1))
    last = ArmFolder(arm_of(run)).read_rounds()[0]
    assert {name: one.status for name, one in last.sites.items()} == {
        "scanner-1": "ok", "scanner-2": "ok", "scanner-3": "refused",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("statistics.bins=32",), "Set statistics.collect = true"),
        (("data.harmonise=histogram",), "Set statistics.collect = true"),
        (("statistics.collect=true",), "Set statistics.noise_multiplier"),
        (
            ("statistics.collect=true", "privacy.unit=site", "privacy.site.expected_sites=3"),
            "no part of the noised sum",
        ),
    ],
)
def test_studies_that_make_no_sense_are_refused(
    medfed: Any, tiny: Path, more: tuple[str, ...], fragment: str
) -> None:
    sets = [part for one in more for part in ("--set", one)]
    assert fragment in medfed("simulate", tiny, *sets, code=2).stderr


@pytest.mark.parametrize("noise", [False, True])
def test_site_card_shows_the_exact_card_and_what_would_leave(
    medfed: Any, tiny: Path, tmp_path: Path, noise: bool
) -> None:
    from medfed.simulations.study import Options, prepare_run, start_study

    medfed("--version")
    overrides = ["statistics.collect=true", "statistics.noise_multiplier=2.0"]
    if not noise:
        overrides = ["statistics.collect=true", "privacy.unit=none", "training.batch_size=8"]
    study, run = load_study(tiny, overrides), tmp_path / "run"
    start_study(study, run, None, Options())
    prepare_run(run)
    site = arm_of(run) / "sites" / "scanner-1"
    done = medfed("site", "card", site / "site.toml", run / "study.toml")
    assert ("noise of standard error" in done.stdout) == noise
    page = site / "state" / "card" / "card.html"
    assert str(page) in done.stdout
    assert page.stat().st_mode & 0o777 == 0o600
    assert "Nothing was sent" in page.read_text()
    card = json.loads(
        medfed("site", "card", site / "site.toml", run / "study.toml", "--json").stdout
    )
    exact = card["exact"]["patients"][0]
    assert exact == len(set(load_site_data(load_site(site / "site.toml"), study).train.patients))
    assert (card["leaves"]["values"] is None) == noise
    # Nothing was charged, and a site that lets nothing out is told why.
    assert Ledger(site / "state").entries() == ()
    strict = (site / "site.toml").read_text()
    for mode in ("dp", "suppressed"):
        strict = strict.replace(f'release_statistics = "{mode}"', 'release_statistics = "never"')
    (site / "site.toml").write_text(strict)
    done = medfed("site", "card", site / "site.toml", run / "study.toml")
    assert 'policy.release_statistics is "never"' in done.stdout
