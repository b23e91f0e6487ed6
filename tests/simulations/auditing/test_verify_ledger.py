"""scripts/verify_ledger.py: alone, against the trainer's accountant, and under random damage."""

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

import medfed.simulations.auditing.verify_ledger as verifier
from medfed.common.accounting import GaussianEvent
from medfed.common.accounting import epsilon as trainers_epsilon

SCRIPT = Path(__file__).parents[3] / "scripts" / "verify_ledger.py"


def event(**values: object) -> dict[str, object]:
    return {
        "unit": "patient",
        "noise_multiplier": 1.0,
        "sample_rate": 0.05,
        "steps": 100,
        "extra_delta": 0.0,
        **values,
    }


def key_of(state: Path) -> Ed25519PublicKey:
    key = load_pem_public_key((state / "ledger.pub").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def test_script_runs_alone_in_an_empty_folder(state: Path, tmp_path: Path):
    """Copied out of the repository, isolated from its paths: medfed cannot be imported by it."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(SCRIPT, alone / "check.py")
    assert "medfed" not in _imports(alone / "check.py")
    done = subprocess.run(
        [sys.executable, "-I", "check.py", str(state), "--delta", "1e-3", "--json"],
        cwd=alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert (result["entries"], result["steps"], result["units"]) == (4, 8, ["patient"])
    assert result["epsilon"] == pytest.approx(
        trainers_epsilon([GaussianEvent(1.0, 0.3, 8)], 1e-3), rel=0.005
    )


def _imports(path: Path) -> str:
    return "".join(
        line for line in path.read_text().splitlines() if line.startswith(("import", "from"))
    )


def test_200_random_single_byte_changes_are_all_found(state: Path):
    content, key = (state / "ledger.jsonl").read_bytes(), key_of(state)
    assert verifier.check_entries(content, key)[1] == []
    draw = random.Random(9)
    for _ in range(200):
        place, value = draw.randrange(len(content)), draw.randrange(256)
        if content[place] == value:
            value ^= 1
        damaged = content[:place] + bytes([value]) + content[place + 1 :]
        assert verifier.check_entries(damaged, key)[1], (place, value)


def test_each_lost_or_added_byte_at_the_ends_is_found(state: Path):
    content, key = (state / "ledger.jsonl").read_bytes(), key_of(state)
    for damaged in (content[:-1], content[1:], content + b"\n", content + b" ", b"\n" + content):
        assert verifier.check_entries(damaged, key)[1]


def test_countersignature_with_one_changed_byte_is_found(state: Path):
    entries, _ = verifier.check_entries((state / "ledger.jsonl").read_bytes(), key_of(state))
    content = (state / "countersignatures.jsonl").read_bytes()
    coordinator = (state / "coordinator.pub").read_text().strip()
    signed, problems = verifier.check_countersignatures(content, coordinator, entries)
    assert len(signed) == 4
    assert problems == []
    draw = random.Random(5)
    for _ in range(60):
        place = draw.randrange(len(content))
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        assert verifier.check_countersignatures(damaged, coordinator, entries)[1], place


def test_countersignatures_by_another_coordinator_are_found(state: Path):
    (state / "coordinator.pub").write_text("ab" * 32 + "\n")
    assert main_code(state) == verifier.FINDING


def main_code(path: Path, *arguments: str) -> int:
    return verifier.main([str(path), *arguments])


def test_main_exits_2_when_there_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main_code(tmp_path) == verifier.UNUSABLE
    assert "Cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.0, 1 / 32, 960, 1e-4), (1.6, 0.25, 72, 1e-4), (0.7, 0.01, 500, 1e-5)],
)
def test_epsilon_agrees_with_the_trainers_accountant(
    noise: float, rate: float, steps: int, delta: float
):
    own = verifier.epsilon([event(noise_multiplier=noise, sample_rate=rate, steps=steps)], delta)
    assert own == pytest.approx(
        trainers_epsilon([GaussianEvent(noise, rate, steps)], delta), rel=0.005
    )


def test_epsilon_is_the_closed_form_of_full_batches():
    value = verifier.epsilon([event(noise_multiplier=8.0, sample_rate=1.0, steps=40)], 1e-3)
    assert value == pytest.approx(2.3518, abs=1e-3)


def test_epsilon_takes_extra_delta_off_delta():
    plain, words = event(), event(noise_multiplier=5.0, sample_rate=1.0, steps=1, extra_delta=4e-6)
    assert verifier.epsilon([plain, words], 1e-5) == pytest.approx(
        verifier.epsilon([plain, {**words, "extra_delta": 0.0}], 6e-6), rel=1e-9
    )
    assert verifier.epsilon([plain, {**words, "extra_delta": 1e-5}], 1e-5) == math.inf


def test_epsilon_of_discrete_noise_is_by_renyi_and_composes():
    discrete = event(sample_rate=1.0, steps=10, noise_multiplier=5.0, mechanism="discrete_gaussian")
    gaussian = {**discrete, "mechanism": "gaussian"}
    loose, tight = (verifier.epsilon([e], 1e-5) for e in (discrete, gaussian))
    assert tight < loose < 1.3 * tight
    assert loose == pytest.approx(
        trainers_epsilon([GaussianEvent(5.0, 1.0, 10, mechanism="discrete_gaussian")], 1e-5),
        rel=0.05,
    )
    assert verifier.epsilon([discrete, event()], 1e-5) > loose


def test_epsilon_without_privacy_or_of_mixed_units_is_infinite():
    assert verifier.epsilon([event(), event(unit="none")], 1e-5) == math.inf
    assert verifier.epsilon([event(), event(unit="record")], 1e-5) == math.inf
    assert verifier.epsilon([], 1e-5) == 0.0
