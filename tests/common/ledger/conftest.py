"""A spend, and ledgers of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.common.ledger import Ledger, Spend

SPEND = Spend(
    release="r" * 64,
    study="5" * 64,
    run="run-1",
    round_number=1,
    unit="patient",
    images_per_patient=4,
    noise_multiplier=1.5,
    sample_rate=0.1,
    steps=7,
    max_grad_norm=0.5,
    noise="secure",
)


@pytest.fixture(scope="session")
def base_spend() -> Spend:
    """One round of training."""
    return SPEND


@pytest.fixture(scope="session")
def eight_in_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with eight entries and their seal; left as it is."""
    folder = tmp_path_factory.mktemp("eight")
    with Ledger(folder).locked() as locked:
        for number in range(1, 9):
            release = f"{number:064x}"
            locked.append(replace(SPEND, release=release, round_number=number, steps=number))
    return folder


@pytest.fixture
def eight(eight_in_store: Path, tmp_path: Path) -> Ledger:
    """A ledger of eight entries, rounds 1 to 8, sealed."""
    return Ledger(Path(shutil.copytree(eight_in_store, tmp_path / "state")))
