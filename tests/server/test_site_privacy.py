"""Site-level privacy of a run: the draw, the ledger, the budget, adaptive clipping."""

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.stats import norm

from medfed.common.errors import LedgerError
from medfed.common.ledger import Ledger
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.server.aggregation.clipping import update_norm
from medfed.server.participants import Participant
from medfed.server.site_privacy import SitePrivacy, noised_by_server

WEIGHTS: StateDict = {"w": np.zeros(4, np.float32)}
SITES = [Participant(f"s{number:02d}", number, None) for number in range(40)]


def study(fraction: float = 1.0, noise: float = 4.0, **site: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "sites", "seed": 5},
            "task": {"classes": ["a", "b"]},
            "training": {"local_epochs": 1},
            "federation": {"fraction": fraction},
            "privacy": {
                "unit": "site",
                "noise_multiplier": noise,
                "target_delta": 1e-3,
                "site": {"expected_sites": 10, **site},
            },
        }
    )


def privacy_of(
    folder: Path, config: StudyConfig, run: str = "run", *, seeded: bool = True
) -> SitePrivacy:
    return SitePrivacy(config, run, folder, seeded=seeded)


def gaussian_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Closed form (Balle and Wang 2018): `rounds` Gaussian releases are one of mu = sqrt(T)/z."""
    mu = math.sqrt(rounds) / noise_multiplier

    def excess(epsilon: float) -> float:
        tail = norm.cdf(-epsilon / mu - mu / 2)
        return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * tail - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("adaptive", [{}, {"adaptive_quantile": 0.5, "count_noise_multiplier": 9}])
@pytest.mark.parametrize("noise", [2.0, 4.0])
def test_epsilon_of_full_participation_is_the_closed_form(
    tmp_path: Path, noise: float, adaptive: dict[str, float]
) -> None:
    this = privacy_of(tmp_path, study(noise=noise, **adaptive))
    weights = WEIGHTS
    for number in range(1, 6):
        weights = this.release(this.rule(weights, number), weights, number)
        assert this.epsilon == pytest.approx(gaussian_epsilon(noise, number, 1e-3), rel=1e-3)
        assert this.epsilon != pytest.approx(gaussian_epsilon(noise * 0.99, number, 1e-3), rel=1e-3)


def test_design_check_value() -> None:
    # DESIGN section 4: sigma 8, q 1, 40 steps, delta 1e-3.
    assert gaussian_epsilon(8.0, 40, 1e-3) == pytest.approx(2.3518, abs=5e-5)


def test_ledger_is_written_before_anything_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = privacy_of(tmp_path, study())
    rule = this.rule(WEIGHTS, 1)
    monkeypatch.setattr(rule, "apply", lambda: pytest.fail("power cut"))
    with pytest.raises(pytest.fail.Exception):
        this.release(rule, WEIGHTS, 1)
    [entry] = Ledger(tmp_path).entries()
    spend = entry.spend
    assert (spend.unit, spend.noise, spend.kind) == ("site", "seeded", "training")
    assert (spend.noise_multiplier, spend.sample_rate, spend.steps) == (4.0, 1.0, 1)


def test_seeded_release_is_charged_once_and_a_secure_one_each_time(tmp_path: Path) -> None:
    for seeded, expected in ((True, 1), (False, 2)):
        folder = tmp_path / str(seeded)
        bits = set()
        for _ in range(2):  # as after a crash between charge and checkpoint
            this = privacy_of(folder, study(), seeded=seeded)
            bits.add(this.release(this.rule(WEIGHTS, 1), WEIGHTS, 1)["w"].tobytes())
        assert len(Ledger(folder).entries()) == len(bits) == expected


def test_runs_on_one_state_folder_compose(tmp_path: Path) -> None:
    for number, run in enumerate(["first", "second", "third"], start=1):
        this = privacy_of(tmp_path, study(), run)
        this.release(this.rule(WEIGHTS, 1), WEIGHTS, 1)
        assert this.epsilon == pytest.approx(gaussian_epsilon(4.0, number, 1e-3), rel=1e-3)


def test_budget_ends_training_before_it_is_exceeded(tmp_path: Path) -> None:
    budget = (gaussian_epsilon(4.0, 3, 1e-3) + gaussian_epsilon(4.0, 4, 1e-3)) / 2
    this = privacy_of(tmp_path, study(max_epsilon=budget))
    for number in range(1, 4):
        assert this.over_budget(number, WEIGHTS) == ""
        this.release(this.rule(WEIGHTS, number), WEIGHTS, number)
    reason = this.over_budget(4, WEIGHTS)
    assert "privacy budget spent before round 4" in reason
    assert "max_epsilon" in reason
    with pytest.raises(LedgerError, match="max_epsilon"):
        this.release(this.rule(WEIGHTS, 4), WEIGHTS, 4)
    assert len(Ledger(tmp_path).entries()) == 3
    assert this.epsilon <= budget


def test_ledger_of_another_unit_is_refused(tmp_path: Path) -> None:
    this = privacy_of(tmp_path, study())
    this.release(this.rule(WEIGHTS, 1), WEIGHTS, 1)
    from dataclasses import replace

    with Ledger(tmp_path).locked() as ledger:
        ledger.append(replace(ledger.entries[0].spend, unit="patient"))
    with pytest.raises(LedgerError, match="unit site"):
        this.release(this.rule(WEIGHTS, 2), WEIGHTS, 2)


@pytest.mark.parametrize("seeded", [True, False])
def test_each_site_is_drawn_alone_with_the_stated_probability(tmp_path: Path, seeded: bool) -> None:
    this = privacy_of(tmp_path, study(fraction=0.25), seeded=seeded)
    draws = [{site.name for site in this.draw(SITES, number)} for number in range(1, 501)]
    counts = np.array([sum(site.name in drawn for drawn in draws) for site in SITES])
    # Binomial(500, 1/4): 125, standard deviation 9.7. Of 40 sites at 5 of them, once in 40,000.
    assert (np.abs(counts - 125) < 5 * 9.7).all()
    assert counts.sum() == pytest.approx(500 * 40 / 4, abs=6 * math.sqrt(500 * 40 * 3 / 16))
    # Poisson: the size of the draw varies (a fixed share would always be 10).
    sizes = np.array([len(drawn) for drawn in draws])
    assert sizes.var() == pytest.approx(40 * 3 / 16, rel=0.4)
    both = np.mean([{"s00", "s01"} <= drawn for drawn in draws])
    assert both == pytest.approx(1 / 16, abs=0.06)


def test_seeded_draw_of_a_site_depends_on_no_other_site(tmp_path: Path) -> None:
    this = privacy_of(tmp_path, study(fraction=0.5))
    for number in range(1, 10):
        drawn = [site.name for site in this.draw(SITES[::-1], number)]
        fewer = [site.name for site in this.draw(SITES[3:], number)]
        assert drawn == sorted(drawn)
        assert [name for name in drawn if name >= "s03"] == fewer


def test_secure_draws_are_not_repeated(tmp_path: Path) -> None:
    this = privacy_of(tmp_path, study(fraction=0.5), seeded=False)
    draws = {tuple(site.name for site in this.draw(SITES, 1)) for _ in range(5)}
    assert len(draws) == 5


def test_empty_draw_is_legal_and_releases_noise(tmp_path: Path) -> None:
    this = privacy_of(tmp_path, study(fraction=1e-9))
    assert this.draw(SITES, 1) == []
    new = this.release(this.rule(WEIGHTS, 1), WEIGHTS, 1)
    assert (new["w"] != 0).all()
    assert len(Ledger(tmp_path).entries()) == 1


def test_adaptive_bound_reaches_the_quantile_through_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    updates = [{"w": rng.normal(0, rng.lognormal(), 4).astype(np.float32)} for _ in range(60)]
    norms = [update_norm(update) for update in updates]
    config = study(
        noise=1.0,
        expected_sites=60,
        max_update_norm=50.0,
        adaptive_quantile=0.6,
        count_noise_multiplier=3.0,
    )
    this = privacy_of(tmp_path, config)
    bounds = []
    for number in range(1, 121):
        rule = this.rule(WEIGHTS, number)
        for update in updates:
            rule.add(update)
        rule.apply()
        assert rule.noisy_balance is not None
        this.adapt(rule.noisy_balance)
        bounds.append(this.bound)
    late = np.median(bounds[60:])
    assert np.quantile(norms, 0.5) < late < np.quantile(norms, 0.7)


def test_charge_of_adaptive_clipping_is_the_formula() -> None:
    for noise, count_noise in ((1.0, 1.0), (2.0, 1.5), (0.5, 10.0)):
        section = study(
            noise=noise, adaptive_quantile=0.5, count_noise_multiplier=count_noise
        ).privacy
        of_update = section.update_noise_multiplier
        assert of_update == (noise**-2 - (2 * count_noise) ** -2) ** -0.5 > noise
        # Sum (sensitivity 1 in units of the bound) and count (1/2) as one Gaussian release.
        assert of_update**-2 + (0.5 / count_noise) ** 2 == pytest.approx(noise**-2, rel=1e-12)
    assert study(noise=2.0).privacy.update_noise_multiplier == 2.0


@pytest.mark.parametrize("count_noise", [0.1, 0.99, 1.0])
def test_count_that_costs_as_much_as_both_may_is_refused(count_noise: float) -> None:
    with pytest.raises(ValidationError, match=r"count_noise_multiplier to 2 or more"):
        study(noise=2.0, adaptive_quantile=0.5, count_noise_multiplier=count_noise)


def test_sites_are_told_a_public_number_of_participants(tmp_path: Path) -> None:
    assert privacy_of(tmp_path, study(expected_sites=7.9)).stated_participants == 7
    assert privacy_of(tmp_path, study(expected_sites=0.5)).stated_participants == 1


def test_noise_is_the_servers_only_where_it_sees_the_updates() -> None:
    config = study()
    assert noised_by_server(config)
    by_sites = {"enabled": True, "distributed_noise": "discrete_gaussian"}
    table = {**config.model_dump(), "secure_aggregation": by_sites}
    assert not noised_by_server(StudyConfig.model_validate(table))
