"""Two tiny studies, prepared run folders of them, and one real SuperLink for the session."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.simulations.study import Options, prepare_run, run_study, start_study

# Pytest's importlib mode leaves a test's own folder out of the path.
sys.path.insert(0, str(Path(__file__).parent))

from superlink import SuperLink, superlink

SITES = ("scanner-1", "scanner-2", "scanner-3")

_COMMON = """
[study]
name = "tiny"
seed = 3
[data]
image_size = 16
[federation]
min_sites = 2
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
[simulation.phantom]
num_patients = 120
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
"""

_LABELS = """
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
"""

_MASKS = """
[task]
type = "segmentation"
classes = ["nodule", "effusion", "cardiomegaly"]
[model]
name = "unet"
widths = [4, 8, 16]
"""

# Sites of different public sizes, so that weights and batches differ between them.
_SIZES = """
[simulation.public_num_patients]
scanner-1 = 30
scanner-2 = 40
scanner-3 = 25
"""

_SCARCE = """
[simulation.labels]
share = 0.3
[augmentation]
flip = "horizontal"
"""

_PLAIN = """
[privacy]
unit = "none"
"""

_PRIVATE = """
[privacy]
unit = "patient"
noise_multiplier = 1.0
sample_rate = 0.3
images_per_patient = 2
target_delta = 1e-3
"""


def _passes(number: int) -> str:
    return f"\n[training]\nrounds = 2\nlocal_epochs = {number}\nbatch_size = 8\n"


def _steps(number: int, *lines: str) -> str:
    return "\n".join(["\n[training]\nrounds = 2", f"local_steps = {number}", *lines, ""])


def _by(algorithm: str) -> str:
    return _COMMON.replace("[federation]", f'[federation]\nalgorithm = "{algorithm}"')


_FASTER = "learning_rate = 0.1"
_PRIVATE_STEPS = _steps(3, _FASTER) + _PRIVATE

STUDIES = {
    "private": _COMMON + _LABELS + _SIZES + _PRIVATE_STEPS,
    "plain": _COMMON + _LABELS + _passes(2) + _PLAIN,
    # Sites describe their data with noise, which is charged, and their grey levels are harmonised.
    "harmonised": _COMMON.replace("[data]", '[data]\nharmonise = "histogram"')
    + _LABELS
    + """
[statistics]
collect = true
bins = 16
noise_multiplier = 1.5
"""
    + _steps(2, _FASTER)
    + _PRIVATE,
    # The server sees the weighted sum of the updates alone.
    "secure": _COMMON
    + _LABELS
    + _SIZES
    + _passes(2)
    + _PLAIN
    + """
[secure_aggregation]
enabled = true
""",
    # The same, and each site adds its share of the noise before it masks.
    "shared noise": _COMMON
    + _LABELS
    + _passes(2)
    + """
[privacy]
unit = "site"
noise_multiplier = 0.5
target_delta = 1e-3
[privacy.site]
expected_sites = 3
max_update_norm = 0.5
[secure_aggregation]
enabled = true
distributed_noise = "discrete_gaussian"
honest_sites = 1.0
""",
    # The server sends each site what it drifts by.
    "scaffold": _by("scaffold") + _LABELS + _steps(3, _FASTER, "momentum = 0.0") + _PRIVATE,
    # Few labels: guesses about the others, and an annotator who labels some before round 2.
    "scarce": _COMMON
    + _LABELS
    + _SCARCE
    + """
[simulation.annotation]
patients = 3
[semi_supervised]
method = "pseudo_labels"
threshold = 0.3
"""
    + _passes(2)
    + _PLAIN,
    "scarce private": _COMMON
    + _LABELS
    + _SCARCE
    + """
[semi_supervised]
method = "mean_teacher"
"""
    + _PRIVATE_STEPS,
    # Sites train one after the other, with noise of their own.
    "cyclic": _by("cyclic") + _LABELS + _PRIVATE_STEPS,
    # A round is the first two updates, by a clock that nobody waits for.
    "fedbuff": _by("fedbuff")
    + _LABELS
    + """
[simulation.pace]
seconds = { scanner-3 = 2.5 }
"""
    + _steps(2)
    + _PLAIN,
    # The server trains the middle of the network, step by step with the sites.
    "split": _by("split") + _LABELS + _steps(2, "batch_size = 8") + _PLAIN,
    # Each site keeps a model of its own, and sends figures of it and of the global one.
    "ditto": _by("ditto") + _LABELS + _steps(3, "batch_size = 8") + _PLAIN,
    # Normalisations stay at the sites, trained with noise.
    "fedbn": _by("fedbn") + _MASKS + _steps(2, _FASTER) + _PRIVATE,
    # Masks, augmentation, and a part of the network that is frozen and never travels.
    "masks": _COMMON
    + _MASKS
    + """freeze = ["network.model.0.*"]
[augmentation]
flip = "horizontal"
rotate_degrees = 20
noise = 0.05
multiplicity = 2
"""
    + _passes(1)
    + _PLAIN,
    # Texts: words are named with noise before the first round, and charged.
    "reports": _COMMON
    + """
[task]
type = "report"
[task.report]
max_words = 12
min_patients = 1
words_per_patient = 20
words_noise_multiplier = 0.7
words_delta = 1e-4
beam_size = 2
[task.report.findings]
nodule = ["nodule", "opacity"]
[model]
name = "report_lstm"
embedding_size = 6
hidden_size = 8
attention_size = 4
"""
    + _steps(2, _FASTER)
    + _PRIVATE,
}

Prepare = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """Makes a prepared run folder of a study of its own: ledgers belong to a run.

    All have the same name, so that everything a grid must not change can be compared literally.
    """

    def prepare_study(kind: str, *overrides: str) -> Path:
        parent = tmp_path_factory.mktemp(kind)
        (parent / "study.toml").write_text(STUDIES[kind], encoding="utf-8")
        study = load_study(parent / "study.toml", list(overrides))
        run = parent / "tiny"
        start_study(study, run, None, Options())
        prepare_run(run)
        return run

    return prepare_study


@pytest.fixture(scope="session")
def serial(prepare: Callable[..., Path]) -> Callable[[str], Path]:
    """The reference: each study on LocalGrid, one site after the other."""

    @cache
    def run_serial(kind: str) -> Path:
        run = prepare(kind)
        run_study(run, Options(grid="local", workers=1))
        return run

    return run_serial


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A SuperLink with a SuperNode for each site."""
    with superlink(tmp_path_factory.mktemp("superlink")) as link:
        link.start_supernodes(SITES)
        yield link
