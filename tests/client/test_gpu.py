"""The same study on a GPU: repeatable there, and close to the CPU. Skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from medfed.client.data.prepare import prepare_store
from medfed.client.data.site_data import load_site_data
from medfed.client.evaluation import evaluate
from medfed.client.privacy.noise import NoiseSource, SecureNoise, SeededNoise
from medfed.client.recording import Recorded, recorder
from medfed.client.site import SiteConfig, load_site
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.client.workspace import workspace
from medfed.common.arithmetic import make_arithmetic_repeatable
from medfed.common.seeding import torch_rng
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.simulations.phantom import load_phantom

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


CLASSES = ["normal", "nodule", "effusion", "cardiomegaly"]
LABELS = {"classes": CLASSES}
MASKS = {"type": "segmentation", "classes": CLASSES[1:]}
TEXTS = {"type": "report", "report": {"max_words": 15, "words_noise_multiplier": 1.0}}
WORDS = ("chest", "is", "lungs", "no", "nodule", "the")
MODELS = {
    "cnn": (LABELS, {"name": "cnn"}, {}),
    "resnet18": (LABELS, {"name": "resnet18"}, {}),
    "densenet121": (LABELS, {"name": "densenet121"}, {}),
    "vgg16": (LABELS, {"name": "vgg16", "freeze": ["classifier.0.*"]}, {}),
    "inception_v3": (LABELS, {"name": "inception_v3"}, {"image_size": 75}),
    "unet": (MASKS, {"name": "unet"}, {}),
    "attention_unet": (MASKS, {"name": "attention_unet"}, {}),
    "unet padded": (MASKS, {"name": "unet"}, {"image_size": 30}),
    "patches": (MASKS, {"name": "unet"}, {"fit": "patch", "image_size": 16}),
    "report": (TEXTS, {"name": "report_lstm"}, {}),
}


def study_on(
    device: str,
    unit: str,
    model: str,
    *,
    graphs: bool = True,
    algorithm: str = "fedavg",
    optimizer: str = "sgd",
    precision: str = "float32",
) -> StudyConfig:
    task, network, data = MODELS[model]
    training = {"local_steps": 5, "learning_rate": 0.01, "optimizer": optimizer}
    if algorithm == "scaffold":
        training["momentum"] = 0.0
    return parse_study(
        {
            "study": {"name": "gpu", "seed": 3},
            "task": task,
            "data": {"image_size": 32, **data},
            "model": network,
            "augmentation": {"rotate_degrees": 10},
            "training": training,
            "federation": {"algorithm": algorithm},
            "privacy": {"unit": unit, "expected_batch_size": 20, "sample_rate": 0.3, "chunk": 4},
            "compute": {"device": device, "cuda_graphs": graphs, "precision": precision},
            "simulation": {
                "dataset": "phantom",
                "phantom": {"num_patients": 80, "max_images_per_patient": 2},
            },
        },
        "test",
    )


def site_of(tmp_path: Path, study: StudyConfig) -> SiteConfig:
    assert study.simulation is not None
    dataset = load_phantom(study.simulation.phantom, image_size=study.data.image_size, seed=3)
    store = prepare_store(dataset, study.task, study.data, parent=tmp_path, pseudonym_key=b"k")
    (tmp_path / "site.toml").write_text(f'name = "s"\n[data]\nstores = ["{store.folder}"]\n')
    return load_site(tmp_path / "site.toml")


def train(tmp_path: Path, device: str, unit: str, model: str, **how: Any) -> StateDict:
    study = study_on(device, unit, model, **how)
    site = site_of(tmp_path, study)
    here = workspace(site, study, WORDS if study.task.type == "report" else ())
    start = here.network.start
    correction: StateDict = {name: np.full_like(array, 0.1) for name, array in start.items()}
    this = Round(
        study,
        "s",
        1,
        torch.device(device),
        correction=correction if study.federation.algorithm == "scaffold" else None,
    )
    data = load_site_data(site, study).train
    if unit == "none":
        return train_without_privacy(here.model, start, data, here.task, this).update
    return train_with_privacy(
        here.model, start, data, here.task, this, seeded=True, public_num_patients=None
    ).update


def figures_of(tmp_path: Path, device: str, model: str) -> dict[str, float]:
    study = study_on(device, "patient", model)
    site = site_of(tmp_path, study)
    here = workspace(site, study, WORDS if study.task.type == "report" else ())
    this = Round(study, "s", 1, torch.device(device))
    data = load_site_data(site, study).train
    return here.task.metrics(evaluate(here.model, here.network.start, data, here.task, this))


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("model", MODELS)
def test_training_on_a_gpu_repeats_bit_for_bit(tmp_path: Path, unit: str, model: str) -> None:
    one = train(tmp_path, "cuda", unit, model)
    other = train(tmp_path, "cuda", unit, model)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert any(np.abs(array).max() > 0 for array in one.values())


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("model", MODELS)
def test_recorded_steps_have_the_bits_of_others(
    tmp_path: Path, unit: str, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = train(tmp_path, "cuda", unit, model)
    other = train(tmp_path, "cuda", unit, model, graphs=False)
    assert [record.message for record in caplog.records if "recorded" in record.message] == []
    assert all(recorded[name].tobytes() == other[name].tobytes() for name in recorded)


@pytest.mark.parametrize("model", MODELS)
def test_steps_in_bfloat16_repeat_recorded_or_not(
    tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = train(tmp_path, "cuda", "none", model, precision="bfloat16")
    other = train(tmp_path, "cuda", "none", model, precision="bfloat16", graphs=False)
    exact = train(tmp_path, "cuda", "none", model)
    assert [record.message for record in caplog.records if "recorded" in record.message] == []
    assert all(recorded[name].tobytes() == other[name].tobytes() for name in recorded)
    assert any(recorded[name].tobytes() != exact[name].tobytes() for name in exact)


@pytest.mark.parametrize("unit", ["none", "patient"])
@pytest.mark.parametrize("algorithm", ["fedprox", "scaffold"])
def test_recorded_steps_with_terms_have_the_bits_of_others_round_after_round(
    tmp_path: Path, unit: str, algorithm: str
) -> None:
    plain = train(tmp_path, "cuda", unit, "cnn", graphs=False)
    other = train(tmp_path, "cuda", unit, "cnn", graphs=False, algorithm=algorithm)
    for _ in range(2):  # the second round replays what the first recorded
        recorded = train(tmp_path, "cuda", unit, "cnn", algorithm=algorithm)
        assert all(recorded[name].tobytes() == other[name].tobytes() for name in other)
    assert any(other[name].tobytes() != plain[name].tobytes() for name in other)


@pytest.mark.parametrize("unit", ["none", "patient"])
def test_steps_of_adam_have_the_bits_of_others_round_after_round(tmp_path: Path, unit: str) -> None:
    other = train(tmp_path, "cuda", unit, "cnn", graphs=False, optimizer="adam")
    for _ in range(2):
        recorded = train(tmp_path, "cuda", unit, "cnn", optimizer="adam")
        assert all(recorded[name].tobytes() == other[name].tobytes() for name in other)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_on_a_gpu_repeats_and_is_close_to_the_cpu(tmp_path: Path, model: str) -> None:
    one = figures_of(tmp_path, "cuda", model)
    assert one == figures_of(tmp_path, "cuda", model)
    cpu = figures_of(tmp_path, "cpu", model)
    assert one.keys() == cpu.keys()
    assert one["loss"] == pytest.approx(cpu["loss"], rel=1e-3)


def test_training_on_a_gpu_is_close_to_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_tf32(study: StudyConfig) -> None:
        make_arithmetic_repeatable(study)
        torch.backends.cudnn.allow_tf32 = False

    monkeypatch.setattr("medfed.client.workspace.make_arithmetic_repeatable", without_tf32)
    gpu = train(tmp_path, "cuda", "none", "cnn")
    cpu = train(tmp_path, "cpu", "none", "cnn")
    for name, array in cpu.items():
        assert np.linalg.norm(gpu[name] - array) <= 1e-2 * np.linalg.norm(array), name


def test_what_a_recording_cannot_hold_leaves_the_thread_where_it_was() -> None:
    device = torch.device("cuda")
    before = torch.cuda.current_stream(device)
    waits = Recorded(lambda tensor: tensor * tensor.sum().item(), recorder(device))
    for _ in range(3):
        assert float(waits(torch.ones(3, device=device)).sum()) == 9.0
    assert torch.cuda.current_stream(device) == before


def test_a_recording_stays_whole_when_others_go() -> None:
    """torch frees what cuBLAS works in on a stream with the first graph of that stream."""
    device = torch.device("cuda")
    weight, rows = torch.randn(2, 2048, 2048, device=device)

    def recorded() -> Recorded:
        product = Recorded(lambda part: part @ weight, recorder(device))
        for _ in range(3):
            product(rows)
        return product

    first = recorded()
    expected = first(rows).clone()
    for _ in range(40):
        recorded()
    torch.cuda.empty_cache()
    filled = torch.full((1 << 26,), float("nan"), device=device)
    assert torch.equal(first(rows), expected)
    assert filled.isnan().all()


@pytest.mark.parametrize("padding", [0, 1])
def test_a_study_that_clips_sums_gradients_in_float32_on_a_gpu(padding: int) -> None:
    """Flat images whose gradients cancel, between two numbers that TF32 rounds apart."""
    make_arithmetic_repeatable(study_on("cuda", "patient", "cnn"))
    layer = torch.nn.Conv2d(1, 4, 3, padding=padding).cuda()
    step = 2.0**-11
    images = torch.stack([torch.full((1, 16, 16), 1.0 + step * (1 - 1e-3)),
                          torch.full((1, 16, 16), 1.0 + step * (1 + 1e-3))]).cuda()  # fmt: skip
    signs = torch.tensor([1.0, -1.0], device="cuda")[:, None, None, None]
    (layer(images) * signs).sum().backward()
    assert layer.weight.grad is not None
    exact = torch.nn.functional.unfold(images.double(), 3, padding=padding).sum(2)
    wanted = (exact * signs.double().reshape(2, 1)).sum(0)
    assert torch.allclose(layer.weight.grad[0].flatten().double(), wanted, atol=2e-3)


@pytest.mark.parametrize("noise", ["secure", "seeded"])
def test_noise_made_on_a_gpu_is_normal(noise: str) -> None:
    """A bound of 5 standard errors on each moment, and Kolmogorov and Smirnov's distance."""
    reference = torch.zeros(3, 1_000_001, device="cuda")
    source: NoiseSource = (
        SecureNoise()
        if noise == "secure"
        else SeededNoise(torch_rng(1, "noise", device=torch.device("cuda")))
    )
    drawn = source.normal_like(reference)
    assert (drawn.device.type, drawn.dtype, drawn.shape) == ("cuda", torch.float32, reference.shape)
    values = drawn.cpu().double().numpy().reshape(-1)
    count = len(values)
    assert abs(values.mean()) < 5 / count**0.5
    assert abs(values.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / count) ** 0.5
    assert stats.kstest(values, "norm").statistic < 2.2 / count**0.5
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / count**0.5
    assert not torch.equal(drawn, source.normal_like(reference))
