"""Epsilon against other people's accountants and closed forms, to the tolerances that are promised.

1 % against Google's privacy loss distributions on a grid ten times finer than the coarsest of ours,
and against Opacus's PRV accountant; 1 % for patients whose images are drawn one by one, against a
convolution written for this test; 1e-3 against the closed form where nothing is drawn.
"""

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution
from epsilons import Mixture, analytic_gaussian_epsilon, gdp_clt_epsilon
from scipy.stats import binom

from medfed.client.privacy.prv import prv_epsilon
from medfed.common.accounting import GaussianEvent, epsilon

# noise_multiplier, sample_rate, steps, delta, Google's interval (finer where a step costs little):
# what hospitals of 50 to 100,000 patients would run; delta is below 1 / patients.
HOSPITALS = [
    (4.0, 0.3, 300, 1e-3, 1e-4),
    (8.0, 0.5, 100, 1e-3, 1e-4),
    (2.0, 0.2, 200, 1e-3, 1e-4),
    (1.0, 1 / 32, 960, 1e-4, 1e-4),
    (1.5, 0.1, 400, 1e-4, 1e-4),
    (3.0, 0.1, 1500, 1e-4, 1e-4),
    (0.8, 0.05, 200, 1e-5, 1e-4),
    (1.2, 0.02, 1500, 1e-5, 1e-4),
    (1.0, 0.0256, 1904, 1e-5, 1e-4),
    (4.0, 0.01, 20_000, 1e-5, 1e-5),
    (20.0, 0.01, 5000, 1e-5, 1e-5),
    (50.0, 0.1, 2000, 1e-5, 1e-5),
    (0.7, 0.005, 2000, 1e-6, 1e-4),
    (2.0, 0.001, 20_000, 1e-6, 1e-5),
    (1.0, 0.002, 5000, 1e-6, 1e-4),
]
# noise_multiplier, sample_rate of an image, steps, most images of a patient, delta.
DRAWN_BY_IMAGE = [
    (1.0, 128 / 5000, 1904, 1, 1e-5),
    (1.0, 128 / 5000, 1904, 2, 1e-5),
    (1.0, 128 / 5000, 1904, 4, 1e-5),
    (2.0, 0.05, 100, 3, 1e-4),
    (0.8, 0.01, 50, 4, 1e-5),
    (4.0, 0.2, 200, 5, 1e-4),
]


def google_epsilon(noise: float, rate: float, steps: int, delta: float, interval: float) -> float:
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=interval
    )
    return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def google_mixture_epsilon(
    noise: float, rate: float, steps: int, images: int, delta: float
) -> float:
    counts = range(images + 1)
    one = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        noise,
        sensitivities=list(counts),
        sampling_probs=[float(binom.pmf(count, images, rate)) for count in counts],
        value_discretization_interval=1e-3,
    )
    return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def agrees(stated: float, reference: float) -> bool:
    """Within 1 %, and not below but for the reference's own rounding."""
    return reference * (1 - 1e-4) <= stated <= reference * 1.01


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "interval"), HOSPITALS)
def test_epsilon_agrees_with_google_and_opacus(
    noise: float, rate: float, steps: int, delta: float, interval: float
) -> None:
    stated = epsilon([GaussianEvent(noise, rate, steps)], delta)
    google = google_epsilon(noise, rate, steps, delta, interval)
    assert stated == pytest.approx(google, rel=0.01)
    # Both are at or above the truth; Opacus states the upper end of a range of known width.
    width = 0.004 * google
    opacus = prv_epsilon(GaussianEvent(noise, rate, steps), delta, eps_error=width)
    assert opacus - 3 * width <= stated <= opacus
    assert stated == pytest.approx(opacus, rel=0.01)
    # 1 % tells apart what must be: 5 % more or less noise, and rounds forgotten.
    for wrong in (
        GaussianEvent(noise * 1.05, rate, steps),
        GaussianEvent(noise * 0.95, rate, steps),
        GaussianEvent(noise, rate, math.ceil(steps * 0.9)),
        GaussianEvent(noise, rate * 0.95, steps),
    ):
        assert epsilon([wrong], delta) != pytest.approx(google, rel=0.01)


def test_gdp_would_state_less_than_the_truth_for_every_other_hospital() -> None:
    too_low = [
        (noise, rate)
        for noise, rate, steps, delta, _ in HOSPITALS
        if gdp_clt_epsilon(noise, rate, steps, delta)
        < 0.99 * epsilon([GaussianEvent(noise, rate, steps)], delta)
    ]
    assert 2 * len(too_low) >= len(HOSPITALS)


@pytest.mark.parametrize(("noise", "rate", "steps", "images", "delta"), DRAWN_BY_IMAGE)
def test_patients_epsilon_agrees_with_a_convolution_when_images_are_drawn(
    noise: float, rate: float, steps: int, images: int, delta: float
) -> None:
    stated = epsilon([GaussianEvent(noise, rate, steps, records_per_unit=images)], delta)
    assert agrees(stated, Mixture(noise, rate, images).epsilon(steps, delta))
    if images > 1:  # neither an image's epsilon, nor any scaled from it, is a patient's
        image = epsilon([GaussianEvent(noise, rate, steps)], delta)
        group = epsilon([GaussianEvent(noise / images, rate, steps)], delta)
        for wrong in (image, images * image, group):
            assert stated != pytest.approx(wrong, rel=0.01)


def test_patients_epsilon_agrees_with_googles_mixture() -> None:
    stated = epsilon([GaussianEvent(2.0, 0.05, 100, records_per_unit=3)], 1e-5)
    assert stated == pytest.approx(google_mixture_epsilon(2.0, 0.05, 100, 3, 1e-5), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_patients_epsilon_agrees_with_googles_mixture_in_the_design_documents_case(
    images: int,
) -> None:
    stated = epsilon([GaussianEvent(1.0, 128 / 5000, 1904, records_per_unit=images)], 1e-5)
    google = google_mixture_epsilon(1.0, 128 / 5000, 1904, images, 1e-5)
    assert stated == pytest.approx(google, rel=1e-3)


@pytest.mark.parametrize("images", [1, 2, 3, 6])
@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.5, 0.02), (3.0, 0.5)])
@pytest.mark.parametrize("value", [0.05, 0.3, 1.0])
def test_one_steps_epsilon_is_exact(images: int, noise: float, rate: float, value: float) -> None:
    delta = Mixture(noise, rate, images).one_step_delta(value)
    event = GaussianEvent(noise, rate, 1, records_per_unit=images)
    # `value` lies on the grid: there the distribution has the exact delta.
    assert epsilon([event], delta) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-5, 1e-6, 1e-8])
@pytest.mark.parametrize("mu", [0.03, 0.1, 0.25, 0.5, 0.79, 1.0, 2.0, 3.5, 5.0, 8.0, 12.0])
def test_epsilon_is_the_closed_form_when_nothing_is_drawn(mu: float, delta: float) -> None:
    exact = analytic_gaussian_epsilon(mu, delta)
    for steps in (1, 40):
        event = GaussianEvent(math.sqrt(steps) / mu, 1.0, steps)
        stated = epsilon([event], delta)
        assert stated == pytest.approx(exact, abs=1e-3)
        assert stated >= exact - 1e-9
        if exact > 0.1:
            wrong = GaussianEvent(event.noise_multiplier * 1.05, 1.0, steps)
            assert epsilon([wrong], delta) != pytest.approx(exact, abs=1e-3)


def test_epsilon_has_the_design_documents_values() -> None:
    # DESIGN section 4. The first: Google's PLD, shown to 1e-3 (see above for its finer grid).
    assert epsilon([GaussianEvent(1.0, 1 / 32, 960)], 1e-4) == pytest.approx(5.400, abs=1e-3)
    # The second has a closed form: mu = sqrt(40) / 8.
    exact = analytic_gaussian_epsilon(math.sqrt(40) / 8, 1e-3)
    assert exact == pytest.approx(2.3518, abs=5e-5)
    assert epsilon([GaussianEvent(8.0, 1.0, 40)], 1e-3) == pytest.approx(exact, abs=1e-5)
    # The third: 5,000 images, batches of 128, noise 1, delta 1e-5; 1904 steps are 48.7 passes.
    stated = [
        epsilon([GaussianEvent(1.0, 128 / 5000, 1904, records_per_unit=images)], 1e-5)
        for images in (1, 2, 4, 8)
    ]
    assert stated == [
        pytest.approx(7.25, abs=0.005),
        pytest.approx(16.98, abs=0.005),
        pytest.approx(42.7, abs=0.05),
        pytest.approx(117, abs=0.5),
    ]
