"""What a site owes from round to round: it follows from which of its answers counted alone."""

import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from medfed.client.compression import OWED_FOLDER, compressed
from medfed.client.site import SiteConfig
from medfed.common.compression import SCALES, decode
from medfed.common.messages import ModelRequest
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study

SIZE = 60


def study(update: str = "top_k", *, feedback: bool = True) -> StudyConfig:
    return parse_study(
        {
            "study": {"name": "s", "seed": 5},
            "task": {"classes": ["a", "b"]},
            "training": {"local_steps": 5},
            "privacy": {"unit": "none"},
            "compression": {
                "update": update, "top_k_fraction": 0.05, "error_feedback": feedback,
            },
        },
        "study.toml",
    )  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    table = {"name": "site-1", "data": {"stores": ["store"]}, "folder": tmp_path}
    return SiteConfig.model_validate(table)


MODEL = nn.Linear(SIZE, 1, bias=False)


def request(
    number: int, counted: int, run: str = "run", how: StudyConfig | None = None
) -> ModelRequest:
    return ModelRequest(
        study=how or study(), run=run, round_number=number, weights=read_state(MODEL),
        frozen_sha256="f", counted_round=counted,
    )  # fmt: skip


def update(number: int) -> StateDict:
    drawn = np.random.default_rng(number).normal(size=(1, SIZE))
    return {"weight": drawn.astype(np.float32)}


def dense(sent: StateDict, how: StudyConfig | None = None) -> np.ndarray:
    section = (how or study()).compression
    return decode(sent, read_state(MODEL), ["weight"], section)["weight"]


def answer(site: SiteConfig, number: int, counted: int, **more: object) -> np.ndarray:
    asked = request(number, counted, **more)  # type: ignore[arg-type]
    return dense(compressed(update(number), MODEL, asked, site))


def test_answers_that_counted_add_up_with_what_is_owed_to_all_updates(site: SiteConfig) -> None:
    total, delivered = np.zeros((1, SIZE)), np.zeros((1, SIZE))
    for number in range(1, 12):
        total += update(number)["weight"]
        delivered += answer(site, number, number - 1)
    assert np.count_nonzero(delivered) > 3
    [owed] = site.state_folder.glob(f"{OWED_FOLDER}/*/after-00011.safetensors")
    from safetensors.numpy import load

    np.testing.assert_allclose(delivered + load(owed.read_bytes())["weight"], total, atol=1e-4)


def test_the_same_request_gets_the_same_bits_however_often_it_comes(site: SiteConfig) -> None:
    answer(site, 1, 0)
    first = answer(site, 2, 1)
    for _ in range(2):
        np.testing.assert_array_equal(answer(site, 2, 1), first)


def test_an_answer_that_never_counted_leaves_no_trace(site: SiteConfig, tmp_path: Path) -> None:
    for number, counted in ((1, 0), (2, 1), (3, 1), (5, 1)):  # 2 and 3 came late, 4 was others'
        last = answer(site, number, counted)
    undisturbed = site.model_copy(update={"folder": tmp_path / "other"})
    answer(undisturbed, 1, 0)
    np.testing.assert_array_equal(answer(undisturbed, 5, 1), last)


def test_a_server_that_goes_back_further_than_is_kept_is_owed_nothing(
    site: SiteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 5):
        answer(site, number, number - 1)
    fresh = dense(compressed(update(3), MODEL, request(3, 0, run="other"), site))
    np.testing.assert_array_equal(answer(site, 3, 1), fresh)
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "another model's", "gone"])
def test_a_damaged_file_is_owed_as_nothing_and_the_run_goes_on(
    site: SiteConfig, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    answer(site, 1, 0)
    [path] = site.state_folder.glob(f"{OWED_FOLDER}/*/*.safetensors")
    from safetensors.numpy import save

    if damage == "gone":
        path.unlink()
    else:
        other = save({"weight": np.full((1, SIZE), np.nan, np.float32)})
        path.write_bytes(path.read_bytes()[:30] if damage == "cut" else other)
    fresh = dense(compressed(update(2), MODEL, request(2, 0, run="other"), site))
    np.testing.assert_array_equal(answer(site, 2, 1), fresh)
    assert "counts as nothing" in caplog.text


def test_two_files_stay_that_others_cannot_read_and_old_runs_are_forgotten(
    site: SiteConfig,
) -> None:
    for number in range(1, 6):
        answer(site, number, number - 1)
    files = sorted(site.state_folder.glob(f"{OWED_FOLDER}/*/*"))
    assert [path.name for path in files] == ["after-00004.safetensors", "after-00005.safetensors"]
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for run in ("b", "c", "d", "e", "f"):
        answer(site, 1, 0, run=run)
    assert len(list(site.state_folder.glob(f"{OWED_FOLDER}/*"))) == 4


@pytest.mark.parametrize("how", ["none", "fp16", "int8 by chance", "top_k without feedback"])
def test_without_feedback_a_site_keeps_nothing(site: SiteConfig, how: str) -> None:
    settings = study(how.split()[0], feedback=len(how.split()) == 1)
    first, second = (
        compressed(update(1), MODEL, request(number, 0, how=settings), site) for number in (1, 2)
    )
    assert not site.state_folder.joinpath(OWED_FOLDER).exists()
    same = all(np.array_equal(first[name], second[name]) for name in first)
    assert same == (how != "int8 by chance")  # each round has chances of its own
    again = compressed(update(1), MODEL, request(1, 0, how=settings), site)
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_an_update_that_the_server_will_reject_is_not_owed(site: SiteConfig) -> None:
    how = study("int8")
    diverged: StateDict = {"weight": np.full((1, SIZE), np.nan, np.float32)}
    sent = compressed(diverged, MODEL, request(1, 0, how=how), site)
    assert np.isnan(sent[SCALES]).all()
    assert not site.state_folder.joinpath(OWED_FOLDER).exists()


def test_statistics_of_a_batchnorm_are_sent_whole_and_never_owed(site: SiteConfig) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        weights = read_state(model)
    change = {name: np.ones_like(array) for name, array in weights.items()}
    asked = ModelRequest(
        study=study(), run="run", round_number=1, weights=weights, frozen_sha256="f"
    )
    sent = compressed(change, model, asked, site)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        np.testing.assert_array_equal(sent[name], change[name])
    [path] = site.state_folder.glob(f"{OWED_FOLDER}/*/*")
    from safetensors.numpy import load

    assert set(load(path.read_bytes())) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("how", ["fp16", "int8", "top_k"])
def test_what_trains_and_stays_at_the_site_is_neither_sent_nor_owed(
    site: SiteConfig, how: str
) -> None:
    model = nn.Sequential(nn.Linear(SIZE, 4, bias=False), nn.LayerNorm(4))
    shared = {"0.weight": np.random.default_rng(1).normal(size=(4, SIZE)).astype(np.float32)}
    weights = {"0.weight": np.zeros_like(shared["0.weight"])}
    asked = ModelRequest(
        study=study(how), run="run", round_number=1, weights=weights, frozen_sha256="f"
    )
    sent = compressed(shared, model, asked, site)
    arrived = decode(sent, weights, ["0.weight"], study(how).compression)
    assert set(arrived) == {"0.weight"}
    [*files] = (site.state_folder / OWED_FOLDER).glob("*/*")
    assert [set(load_file(file)) for file in files] == [{"0.weight"}] * (how != "fp16")
