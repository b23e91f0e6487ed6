"""scripts/results_studies.py: the noise of private rows, against what a ledger would charge."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medfed.client import policy
from medfed.client.site import PolicySection
from medfed.common.accounting import epsilon
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "results_studies", ROOT / "scripts" / "results_studies.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def spent(study: StudyConfig) -> float:
    """Epsilon of a site's ledger after all of `study`."""
    own = PolicySection(target_delta=study.privacy.target_delta)
    words = policy.spend_of_words(study, own, run="r", release="words")
    one = policy.spend_of_round(study, own, run="r", round_number=1, release="round")
    events = [spend.event for spend in (words, *[one] * study.training.rounds)]
    return epsilon([event for event in events if event is not None], own.target_delta)


@pytest.mark.parametrize("target", [8.0, 1.0])
def test_noise_on_words_and_steps_spends_the_epsilon_asked_and_no_more(
    script: ModuleType, target: float
) -> None:
    path = ROOT / "studies" / "phantom_reports_private.toml"
    settings = script.noise_within(load_study(path), target)
    assert [setting.partition("=")[0] for setting in settings] == [
        "task.report.words_noise_multiplier",
        "privacy.noise_multiplier",
    ]
    assert 0.995 * target < spent(load_study(path, settings)) <= target
    noise = float(settings[1].partition("=")[2])
    less = (settings[0], f"privacy.noise_multiplier={noise - 1e-4}")
    assert spent(load_study(path, less)) > target
