"""The sabotage suite of the mechanism: every fault in the real trainer is found.

Faults are put where they would be in earnest: in the noise sources, in the optimiser, in the draw
of patients. What is not sabotaged is the installed code.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import medfed.client.training as training
from medfed.client.privacy import book_keeping, dp_sgd
from medfed.client.privacy.dp_sgd import NoisyOptimizer
from medfed.common.noise import SecureNoise, SecureUniform, SeededNoise
from medfed.common.study import PrivacySection
from medfed.simulations.auditing import sampling_checks
from medfed.simulations.auditing.attack_checks import check_attacks
from medfed.simulations.auditing.clipping_checks import check_clipping
from medfed.simulations.auditing.findings import Finding, Status
from medfed.simulations.auditing.mechanism import audit_mechanism
from medfed.simulations.auditing.noise_checks import check_noise
from medfed.simulations.auditing.probe import Setting, one_pixel_each, release
from medfed.simulations.auditing.sampling_checks import check_sampling

BOTH = pytest.mark.parametrize("seeded", [False, True], ids=["secure", "seeded"])


def setting(**privacy: object) -> Setting:
    values = {"noise_multiplier": 1.6, "sample_rate": 0.25, "images_per_patient": 2, **privacy}
    return Setting(PrivacySection.model_validate(values), seed=11)


def failed(findings: Iterable[Finding]) -> set[str]:
    return {f.check.split(" (")[0] for f in findings if f.status is Status.FAIL}


@pytest.fixture
def fewer_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_checks, "_RELEASES", 60)
    monkeypatch.setattr(sampling_checks, "_LONG_RELEASES", 20)


def scale_noise(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    for source in (SecureNoise, SeededNoise):
        real = source.normal_like

        def weaker(
            self: object,
            reference: torch.Tensor,
            real: Callable[..., torch.Tensor] = real,
        ) -> torch.Tensor:
            return factor * real(self, reference)

        monkeypatch.setattr(source, "normal_like", weaker)


@BOTH
def test_noise_passes_as_it_is(seeded: bool):
    findings, _ = check_noise(setting(), seeded=seeded)
    assert failed(findings) == set()


@BOTH
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9])
def test_noise_that_is_weaker_is_found(
    monkeypatch: pytest.MonkeyPatch, seeded: bool, factor: float
):
    scale_noise(monkeypatch, factor)
    findings, _ = check_noise(setting(), seeded=seeded)
    assert {"noise standard deviation", "noise distribution"} <= failed(findings)


def test_noise_that_spares_a_parameter_is_found(monkeypatch: pytest.MonkeyPatch):
    real = NoisyOptimizer.add_noise

    def sparing(self: NoisyOptimizer) -> None:
        spared = [(p, p.summed_grad.clone()) for p in self.params if p.numel() == 1]
        assert spared
        real(self)
        for parameter, without in spared:
            parameter.grad = without

    monkeypatch.setattr(NoisyOptimizer, "add_noise", sparing)
    findings, _ = check_noise(setting(), seeded=False)
    assert "noise standard deviation" in failed(findings)


@BOTH
def test_the_same_noise_each_round_is_found(monkeypatch: pytest.MonkeyPatch, seeded: bool):
    """A seed that is used again: right deviation, right shape, no privacy between two rounds."""

    start = SeededNoise.__init__

    def again(self: SeededNoise, *_: object) -> None:
        start(self, torch.Generator().manual_seed(5))

    for source in (SecureNoise, SeededNoise):
        monkeypatch.setattr(source, "__init__", again)
        monkeypatch.setattr(source, "normal_like", SeededNoise.normal_like)
    findings, _ = check_noise(setting(), seeded=seeded)
    assert "correlation between rounds and sites" in failed(findings)


@BOTH
def test_the_same_noise_each_step_is_found(monkeypatch: pytest.MonkeyPatch, seeded: bool):
    """A new seed each round, but drawn from the start again at each step."""

    def make(self: object, *_: object) -> None:
        self._seed, self._left = int(torch.seed()) % 2**40, 0  # type: ignore[attr-defined]

    def begin(self: NoisyOptimizer) -> None:
        noise: Any = self._noise
        noise._generator = torch.Generator().manual_seed(noise._seed)

    def drawn(self: object, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self._generator)  # type: ignore[attr-defined]

    for source in (SecureNoise, SeededNoise):
        monkeypatch.setattr(source, "__init__", make)
        monkeypatch.setattr(source, "normal_like", drawn)
    monkeypatch.setattr(NoisyOptimizer, "begin_noise", begin)
    findings, _ = check_noise(setting(), seeded=seeded)
    assert failed(findings) == {
        "correlation across the 2 steps of a round",
        "correlation across the 5 steps of a round",
    }


@BOTH
def test_sampling_passes_as_it_is(fewer_releases: None, seeded: bool):
    findings, _ = check_sampling(setting(), seeded=seeded)
    assert failed(findings) == set()


@BOTH
def test_full_participation_claimed_as_poisson_is_found(
    fewer_releases: None, monkeypatch: pytest.MonkeyPatch, seeded: bool
):
    _draw_by(monkeypatch, lambda size: np.zeros(size))
    findings, _ = check_sampling(setting(), seeded=seeded)
    assert {"sampling rate", "spread of the batch size", "draws of successive steps"} <= failed(
        findings
    )


@BOTH
def test_batches_of_a_fixed_size_are_found(
    fewer_releases: None, monkeypatch: pytest.MonkeyPatch, seeded: bool
):
    rng = np.random.default_rng(3)
    _draw_by(monkeypatch, lambda size: rng.permutation(size) / size)
    findings, _ = check_sampling(setting(), seeded=seeded)
    assert "spread of the batch size" in failed(findings)
    assert "sampling rate" not in failed(findings)


def test_the_same_patients_each_round_are_found(
    fewer_releases: None, monkeypatch: pytest.MonkeyPatch
):
    _draw_by(monkeypatch, lambda size: np.random.default_rng(3).random(size))
    findings, _ = check_sampling(setting(), seeded=False)
    assert {"draws of successive rounds", "all units are drawn alike"} <= failed(findings)


def _draw_by(monkeypatch: pytest.MonkeyPatch, draw: Callable[[int], np.ndarray]) -> None:
    class Drawn:
        def random(self, size: int) -> np.ndarray:
            return draw(size)

    real = training.numpy_rng
    monkeypatch.setattr(SecureUniform, "random", lambda self, size: draw(size))
    monkeypatch.setattr(
        training,
        "numpy_rng",
        lambda seed, name, *rest: Drawn() if "sampling" in name else real(seed, name, *rest),
    )


@pytest.mark.parametrize("by_books", [True, False], ids=["books", "vmap"])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("unit", ["patient", "record"])
def test_clipping_and_divisor_pass_as_they_are(clipping: str, unit: str, by_books: bool):
    asked = replace(setting(clipping=clipping, unit=unit), by_books=by_books)
    assert failed(check_clipping(asked)) == set()


@pytest.mark.parametrize("by_books", [True, False], ids=["books", "vmap"])
@pytest.mark.parametrize("limit", [1, 4])
def test_clipping_passes_whatever_the_limit_of_images(limit: int, by_books: bool):
    asked = replace(setting(images_per_patient=limit, max_grad_norm=0.3), by_books=by_books)
    assert failed(check_clipping(asked)) == set()


def _unclipped(gradients: list[torch.Tensor], *_: object) -> list[torch.Tensor]:
    return [gradient.sum(dim=0) for gradient in gradients]


@pytest.mark.parametrize("by_books", [True, False], ids=["books", "vmap"])
def test_missing_clipping_is_found(
    by_books: bool, fewer_releases: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        book_keeping, "clip_factors", lambda norms_P, *_: torch.full_like(norms_P, 1.0)
    )
    monkeypatch.setattr(dp_sgd, "clipped_sums", _unclipped)
    asked = replace(setting(), by_books=by_books)
    findings = failed(check_clipping(asked))
    assert "removal sensitivity: one loud image" in findings
    sampled, _ = check_sampling(asked, seeded=False)
    assert "size of a contribution" in failed(sampled)


@pytest.mark.parametrize("by_books", [True, False], ids=["books", "vmap"])
def test_a_gradient_that_is_not_finite_and_is_added_is_found(
    by_books: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dp_sgd, "clipped_sums", _unclipped)
    real = book_keeping.torch.where
    monkeypatch.setattr(
        book_keeping.torch, "where", lambda kept, one, other: real(kept, one, float("nan"))
    )
    found = failed(check_clipping(replace(setting(), by_books=by_books)))
    assert "removal sensitivity: an image without a finite gradient" in found


def test_clipping_of_each_image_instead_of_each_patient_is_found(monkeypatch: pytest.MonkeyPatch):
    real = Setting.with_privacy

    def per_record(self: Setting, **values: object) -> Setting:
        return real(self, **{**values, "unit": "record"})

    # Claimed per patient, trained per record: a patient of many images counts for many.
    monkeypatch.setattr(Setting, "with_privacy", per_record)
    findings = failed(check_clipping(setting()))
    assert any("loud images" in check for check in findings)


def test_a_divisor_that_follows_the_patients_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "expected_batch", lambda study, public: 20.0)
    assert {"divisor"} <= failed(check_clipping(setting()))


def test_attacks_stay_below_the_claim_and_refute_a_false_one(monkeypatch: pytest.MonkeyPatch):
    weak = setting(noise_multiplier=4.0, target_delta=1e-5)
    findings, scores = check_attacks(weak, 20)
    assert failed(findings) == set()
    bounds = {f.check: f.numbers for f in findings}
    assert bounds["Gaussian bound"]["bound"] <= bounds["Gaussian bound"]["claimed"]
    assert scores.present.sum() > 400
    scale_noise(monkeypatch, 0.0)
    assert failed(check_attacks(weak, 20)[0]) == {"one-run bound", "Gaussian bound"}


def test_release_is_the_clipped_sum_when_noise_is_off(monkeypatch: pytest.MonkeyPatch):
    scale_noise(monkeypatch, 0.0)
    seen = release(setting(sample_rate=1.0), one_pixel_each(30), steps=3)
    assert seen[:30] == pytest.approx(np.full(30, 3.0), rel=1e-4)
    assert not seen[30:].any()


@pytest.mark.slow
def test_audit_passes_the_installed_trainer_whole():
    result = audit_mechanism(None, seed=0)
    assert failed(result.findings) == set()
    assert len(result.figures) == 3
