"""The sabotage suite of site-level privacy: faults in the real server, or at the real sites."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

import medfed.common.secure_sum.noisy_grid as noisy_grid
import medfed.server.aggregation.site_level as site_level
import medfed.server.site_privacy as site_privacy
from medfed.client import secure_answers
from medfed.common.ledger import LockedLedger
from medfed.common.noise import SecureNoise, SecureUniform, SeededNoise
from medfed.common.secure_sum import masking
from medfed.common.secure_sum.noisy_grid import NoisyGrid
from medfed.common.state_dicts import StateDict
from medfed.common.study import PrivacySection, SecureAggregationSection
from medfed.server.aggregation.clipping import clip_update
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.masked_checks import (
    check_masks,
    check_shared_noise,
    check_shared_sensitivity,
)
from medfed.simulations.auditing.mechanism import audit_mechanism
from medfed.simulations.auditing.site_level_checks import (
    check_site_attack,
    check_site_draws,
    check_site_noise,
    check_site_sensitivity,
)
from medfed.simulations.auditing.site_probe import SiteSetting

BOTH = pytest.mark.parametrize("seeded", [False, True], ids=["secure", "seeded"])
SLOW = pytest.mark.slow
WEAKER = pytest.mark.parametrize("factor", [0.0, pytest.param(0.5, marks=SLOW), 0.9])
FIXED = {"expected_sites": 6, "max_update_norm": 0.5}
ADAPTIVE = {**FIXED, "adaptive_quantile": 0.5, "count_noise_multiplier": 4.0}


def setting(
    site: dict[str, float] = FIXED, fraction: float = 0.6, noise: float = 1.5, **secure: object
) -> SiteSetting:
    privacy = {"unit": "site", "noise_multiplier": noise, "target_delta": 1e-3, "site": site}
    return SiteSetting(
        PrivacySection.model_validate(privacy),
        fraction,
        SecureAggregationSection.model_validate(secure),
        seed=7,
    )


def shared(honest_sites: float = 0.8, expected_sites: int = 6) -> SiteSetting:
    return setting(
        {**FIXED, "expected_sites": expected_sites},
        fraction=1.0,
        enabled=True,
        distributed_noise="discrete_gaussian",
        honest_sites=honest_sites,
    )


def failed(findings: Iterable[Finding]) -> set[str]:
    """The names of the checks that failed, without what stands in brackets."""
    return {re.sub(r" \(.*", "", f.check) for f in findings if f.status is Status.FAIL}


@BOTH
@pytest.mark.parametrize("site", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_server_passes_as_it_is(site: dict[str, float], seeded: bool):
    claim = setting(site)
    found, _ = check_site_noise(claim, seeded=seeded)
    drawn, _ = check_site_draws(claim, seeded=seeded)
    assert failed([*found, *drawn, *check_site_sensitivity(claim)]) == set()


@BOTH
@WEAKER
def test_weaker_noise_of_the_server_is_found(
    monkeypatch: pytest.MonkeyPatch, seeded: bool, factor: float
):
    for source in (SecureNoise, SeededNoise):
        real = source.normal_like

        def weaker(
            self: object, like: torch.Tensor, real: Callable[..., torch.Tensor] = real
        ) -> torch.Tensor:
            return factor * real(self, like)

        monkeypatch.setattr(source, "normal_like", weaker)
    found, _ = check_site_noise(setting(ADAPTIVE), seeded=seeded)
    assert {"noise standard deviation", "noise distribution"} <= failed(found)
    count = "noise standard deviation (%s, count of sites within the bound)"
    low = {f.check for f in found if f.status is Status.FAIL}
    assert count % ("seeded" if seeded else "secure") in low


def test_noise_that_spares_numbers_of_dimension_0_is_found(monkeypatch: pytest.MonkeyPatch):
    real = SecureNoise.normal_like
    monkeypatch.setattr(
        SecureNoise,
        "normal_like",
        lambda self, like: torch.zeros(()) if like.dim() == 0 else real(self, like),
    )
    found, _ = check_site_noise(setting(), seeded=False)
    spared = [f.check for f in found if f.status is Status.FAIL]
    assert "noise standard deviation (secure, parameter of dimension 0)" in spared
    assert "noise standard deviation (secure, other coordinates)" not in spared


def test_adaptive_clipping_that_leaves_the_count_out_of_account_is_found(
    monkeypatch: pytest.MonkeyPatch,
):
    """The sum gets the noise of both releases together, so both together cost more than charged."""
    plain = property(lambda self: self.noise_multiplier)
    monkeypatch.setattr(PrivacySection, "update_noise_multiplier", plain)
    tight = {**FIXED, "adaptive_quantile": 0.5, "count_noise_multiplier": 1.5}
    found, _ = check_site_noise(setting(tight), seeded=False)
    assert "noise standard deviation" in failed(found)


@BOTH
def test_the_same_noise_of_the_server_each_round_is_found(
    monkeypatch: pytest.MonkeyPatch, seeded: bool
):
    monkeypatch.setattr(
        site_privacy.SitePrivacy,
        "_source",
        lambda self, number: SeededNoise(torch.Generator().manual_seed(5)),
    )
    found, _ = check_site_noise(setting(), seeded=seeded)
    names = {"correlation between rounds and sites"} | (
        set() if seeded else {"same round asked again"}
    )
    assert names <= failed(found)


def test_release_without_a_charge_is_found(monkeypatch: pytest.MonkeyPatch):
    real, calls = LockedLedger.append, iter(range(1000))

    def forgetful(self: LockedLedger, spend: object) -> None:
        if next(calls) % 5:
            real(self, spend)  # type: ignore[arg-type]

    monkeypatch.setattr(LockedLedger, "append", forgetful)
    found, _ = check_site_noise(setting(), seeded=False)
    assert failed(found) == {"each release is charged"}


def test_missing_clipping_at_the_server_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site_level, "clip_update", lambda update, bound: (update, True))
    found = failed(check_site_sensitivity(setting()))
    assert {
        "removal sensitivity: one huge value",
        "removal sensitivity: huge values everywhere",
        "removal sensitivity: a parameter of dimension 0 alone",
        "divisor",
    } <= found


def test_clipping_that_overlooks_numbers_of_dimension_0_is_found(monkeypatch: pytest.MonkeyPatch):
    def blind(update: StateDict, bound: float) -> tuple[StateDict, bool]:
        clipped, within = clip_update({n: a for n, a in update.items() if a.ndim}, bound)
        return {**clipped, **{n: a for n, a in update.items() if not a.ndim}}, within

    monkeypatch.setattr(site_level, "clip_update", blind)
    found = failed(check_site_sensitivity(setting()))
    assert "removal sensitivity: a parameter of dimension 0 alone" in found
    assert "removal sensitivity: one huge value" not in found


def test_nan_that_reaches_the_sum_is_found(monkeypatch: pytest.MonkeyPatch):
    def careless(update: StateDict, bound: float) -> tuple[StateDict, bool]:
        clean = {name: np.nan_to_num(array) for name, array in update.items()}
        return {n: a * 3 for n, a in clip_update(clean, bound)[0].items()}, True

    monkeypatch.setattr(site_level, "clip_update", careless)
    assert "removal sensitivity: an update with NaN" in failed(check_site_sensitivity(setting()))


def test_divisor_that_follows_the_number_of_sites_is_found(monkeypatch: pytest.MonkeyPatch):
    real = site_level.SiteLevelMean.apply

    def by_answers(self: site_level.SiteLevelMean) -> StateDict:
        new, expected = real(self), self._mechanism.expected_sites
        return {name: a * expected / max(self.num_updates, 1) for name, a in new.items()}

    monkeypatch.setattr(site_level.SiteLevelMean, "apply", by_answers)
    assert "divisor" in failed(check_site_sensitivity(setting()))


def test_count_that_a_site_moves_by_one_is_found(monkeypatch: pytest.MonkeyPatch):
    real = site_level.SiteLevelMean.add

    def twice(self: site_level.SiteLevelMean, update: StateDict, weight: int = 1) -> None:
        before = self._balance
        real(self, update, weight)
        self._balance += self._balance - before

    monkeypatch.setattr(site_level.SiteLevelMean, "add", twice)
    assert failed(check_site_sensitivity(setting(ADAPTIVE))) == {
        "removal sensitivity: count of sites within the bound"
    }


@BOTH
@pytest.mark.parametrize("how", ["everyone", "fixed number"])
def test_draw_that_is_not_poisson_is_found(monkeypatch: pytest.MonkeyPatch, seeded: bool, how: str):
    rng = np.random.default_rng(3)
    if how == "everyone":
        monkeypatch.setattr(
            site_privacy.SitePrivacy, "draw", lambda self, sites, number: list(sites)
        )
    else:
        monkeypatch.setattr(
            site_privacy.SitePrivacy,
            "draw",
            lambda self, sites, n: [
                list(sites)[i] for i in rng.choice(len(sites), 60, replace=False)
            ],
        )
    found, _ = check_site_draws(setting(), seeded=seeded)
    assert "spread of the batch size" in failed(found)
    assert ("sampling rate" in failed(found)) == (how == "everyone")


def test_draw_that_anyone_can_foresee_is_found(monkeypatch: pytest.MonkeyPatch):
    uniforms = np.random.default_rng(3).random(100)
    monkeypatch.setattr(SecureUniform, "random", lambda self, size: uniforms[:size])
    found, _ = check_site_draws(setting(), seeded=False)
    assert {"draws of successive rounds", "all units are drawn alike"} <= failed(found)


def test_attack_stays_below_the_claim_and_refutes_a_false_one(monkeypatch: pytest.MonkeyPatch):
    claim = setting(noise=4.0)
    assert failed([check_site_attack(claim)[0]]) == set()
    monkeypatch.setattr(
        SecureNoise, "normal_like", lambda self, like: torch.zeros(like.shape, dtype=like.dtype)
    )
    assert failed([check_site_attack(claim)[0]]) == {"Gaussian bound"}


@BOTH
@pytest.mark.parametrize(
    ("honest", "sites"),
    [pytest.param(1.0, 3, marks=SLOW), (0.8, 6), pytest.param(2 / 3, 8, marks=SLOW)],
)
def test_shared_noise_passes_as_it_is(honest: float, sites: int, seeded: bool):
    found, _ = check_shared_noise(shared(honest, sites), seeded=seeded)
    assert failed(found) == set()


def test_shared_noise_is_clipped_and_masked_as_it_is():
    claim = shared()
    assert failed([*check_shared_sensitivity(claim), *check_masks(claim)]) == set()


@BOTH
@WEAKER
def test_weaker_noise_of_the_sites_is_found(
    monkeypatch: pytest.MonkeyPatch, seeded: bool, factor: float
):
    real = noisy_grid.discrete_gaussian
    monkeypatch.setattr(
        noisy_grid,
        "discrete_gaussian",
        lambda *given: np.rint(factor * real(*given)).astype(np.int64),
    )
    found, _ = check_shared_noise(shared(), seeded=seeded)
    assert {"noise standard deviation", "stated noise in the worst case"} <= failed(found)


def test_shares_that_count_on_all_sites_are_found(monkeypatch: pytest.MonkeyPatch):
    """Enough noise if everyone stays and is honest; too little in the worst case."""
    monkeypatch.setattr(NoisyGrid, "num_honest_left", property(lambda self: self.num_sites))
    found, _ = check_shared_noise(shared(), seeded=False)
    assert "stated noise in the worst case" in failed(found)


@BOTH
@pytest.mark.parametrize("shared_by", ["rounds", "sites"])
def test_the_same_noise_of_the_sites_is_found(
    monkeypatch: pytest.MonkeyPatch, seeded: bool, shared_by: str
):
    """Every round, or (each its own in every round) every site."""
    words = secure_answers.seeded_words
    rounds = iter(range(10_000))

    def again(*_: object) -> object:
        # Three sites of six add their noise in a round.
        return words(5 if shared_by == "rounds" else next(rounds) // 3)

    monkeypatch.setattr(secure_answers, "seeded_words", again)
    monkeypatch.setattr(secure_answers, "secure_words", again)
    found, _ = check_shared_noise(shared(), seeded=seeded)
    assert ("correlation between rounds and sites" in failed(found)) == (shared_by == "rounds")
    assert "noise standard deviation" in failed(found)


def test_missing_clipping_at_the_sites_is_found(monkeypatch: pytest.MonkeyPatch):
    real = NoisyGrid._factor  # it also refuses NaN
    monkeypatch.setattr(NoisyGrid, "_factor", lambda self, update: real(self, update) * 0 + 1.0)
    found = failed(check_shared_sensitivity(shared()))
    assert {
        "removal sensitivity: huge values everywhere",
        "removal sensitivity: a parameter of dimension 0 alone",
    } <= found


def test_masks_that_are_missing_or_used_again_are_found(monkeypatch: pytest.MonkeyPatch):
    claim = SiteSetting(
        PrivacySection(unit="none"), secure=SecureAggregationSection(enabled=True), seed=7
    )
    assert failed(check_masks(claim)) == set()
    with monkeypatch.context() as patch:
        patch.setattr(masking, "_apply", lambda vector, key, operation: None)
        assert {"masked updates look random", "masks are fresh each round"} <= failed(
            check_masks(claim)
        )
    real = masking._apply
    monkeypatch.setattr(
        masking, "_apply", lambda vector, key, operation: real(vector, bytes(32), operation)
    )
    assert "masks are fresh each round" in failed(check_masks(claim))


@pytest.mark.parametrize(
    ("claim", "figures"),
    [(setting(ADAPTIVE), 3), (setting(fraction=1.0), 2), pytest.param(shared(), 1, marks=SLOW)],
    ids=["adaptive", "everyone", "shared"],
)
def test_audit_passes_whole_studies(claim: SiteSetting, figures: int):
    result = audit_mechanism(claim.study, seed=7)
    assert failed(result.findings) == set()
    assert len(result.figures) == figures


def test_study_without_privacy_or_masks_is_skipped_with_the_reason():
    study = SiteSetting(PrivacySection(unit="none")).study
    assert "nobody adds noise" in audit_mechanism(study, seed=0).skipped
