"""Networks by the study's `model.name`, with their first weights and what of them trains."""

from functools import lru_cache
from pathlib import Path

from torch import nn

from medfed.common.models.classifiers import build_classifier
from medfed.common.models.freezing import (
    freeze,
    frozen_state_digest,
    set_training_mode,
    trained_names,
    trained_parameters,
)
from medfed.common.models.fusion import Fusion
from medfed.common.models.low_rank import add_low_rank
from medfed.common.models.pretrained import (
    LoadReport,
    initialise_from,
    load_weights_file,
    resolve_weights,
)
from medfed.common.models.report_lstm import ReportModel
from medfed.common.models.segmenters import build_segmenter
from medfed.common.models.shared import local_names, shared_names, shared_state
from medfed.common.models.stages import Shape, cut, shapes_at_cuts
from medfed.common.models.standardisation import standardise_weights
from medfed.common.models.without_weights import without_weights
from medfed.common.seeding import process_seeded
from medfed.common.state_dicts import StateDict, read_state
from medfed.common.study import StudyConfig
from medfed.common.study.model import SEGMENTERS

__all__ = [
    "build_model",
    "check_model",
    "cut_shapes",
    "frozen_state_digest",
    "load_pretrained",
    "local_names",
    "set_training_mode",
    "shared_names",
    "shared_state",
    "trained_names",
    "trained_parameters",
    "trained_state",
]


def build_model(
    study: StudyConfig,
    num_outputs: int,
    weights_folder: Path | None = None,
    *,
    may_download: bool = True,
) -> nn.Module:
    """Return the study's network, initialised by its seed and weights file, and frozen as asked.

    The process-wide random state is left as it was.

    Args:
        study: What to build.
        num_outputs: `Task.num_outputs`.
        weights_folder: Where a weights file may lie under its own name besides model.weights.
        may_download: Whether weights may be fetched from the address that the study names.

    Raises:
        StudyError: A size that the network cannot take, weights that do not fit or cannot be had.
    """
    with process_seeded(study.study.seed, "initial weights"):
        model = _build(study, num_outputs)
    load_pretrained(model, study, weights_folder, may_download=may_download)
    with process_seeded(study.study.seed, "low rank"):
        _choose_what_trains(model, study)
    return model


def check_model(study: StudyConfig) -> None:
    """Check that the study's network can be built, and that weights, `freeze`, algorithm fit it.

    Takes no memory for the network unless there are weights to compare it with.

    Raises:
        StudyError: What `build_model` would raise.
    """
    # Any number of outputs: those of a report depend on words that are not agreed yet.
    num_outputs = len(study.task.classes) or 8
    if study.model.weights:
        model = build_model(study, num_outputs)
    else:
        model = _without_memory(study, num_outputs)
    local_names(model, study)
    if study.federation.algorithm == "split":
        cut(model, study)


@lru_cache(maxsize=64)
def cut_shapes(study: StudyConfig, num_outputs: int) -> tuple[Shape, Shape]:
    """Return the shapes, for one image, of what front and middle of the study's network put out.

    Raises:
        StudyError: What `cut` raises.
    """
    return shapes_at_cuts(_without_memory(study, num_outputs), study)


def _without_memory(study: StudyConfig, num_outputs: int) -> nn.Module:
    with without_weights():
        model = _build(study, num_outputs)
        _choose_what_trains(model, study)
    return model


def load_pretrained(
    model: nn.Module,
    study: StudyConfig,
    weights_folder: Path | None = None,
    *,
    may_download: bool = True,
) -> LoadReport | None:
    """Load model.weights into `model`, if the study names any; say what was taken and what not."""
    section = study.model
    if not section.weights:
        return None
    path = resolve_weights(
        section.weights, section.weights_sha256, weights_folder, may_download=may_download
    )
    return initialise_from(model, load_weights_file(path), origin=section.weights)


def trained_state(model: nn.Module) -> StateDict:
    """Return copies of what training changes."""
    return read_state(model, trained_names(model))


def _choose_what_trains(model: nn.Module, study: StudyConfig) -> None:
    """Freeze as the study says, and put low-rank matrices beside what is frozen if it has any."""
    section = study.model
    if section.low_rank is None:
        freeze(model, section.freeze)
        return
    freeze(model, "backbone" if section.freeze == "none" else section.freeze)
    add_low_rank(model, section.low_rank)


def _build(study: StudyConfig, num_outputs: int) -> nn.Module:
    model = _build_plain(study, num_outputs)
    if study.model.weight_standardisation:
        standardise_weights(model)
    return model


def _build_plain(study: StudyConfig, num_outputs: int) -> nn.Module:
    section, data = study.model, study.data
    if section.is_plugin:
        from medfed.common.models.plugin import build_plugin

        return build_plugin(study, num_outputs)
    if section.name in SEGMENTERS:
        return build_segmenter(
            section.name,
            spatial_dims=data.dimensions,
            in_channels=data.total_channels,
            num_outputs=num_outputs,
            channels=section.widths,
            norm=section.norm,
        )
    if study.task.type == "report":
        return ReportModel(
            _classifier(study, section.encoder, data.total_channels, 1),
            num_words=num_outputs,
            embedding_size=section.embedding_size,
            hidden_size=section.hidden_size,
            attention_size=section.attention_size,
        )
    if not study.uses_fusion:
        return _classifier(study, section.name, data.total_channels, num_outputs)
    late = section.fusion == "late"
    channels = data.channels if late else data.total_channels
    encoders = [
        _classifier(study, section.name, channels, 1) for _ in range(len(data.views) if late else 1)
    ]
    return Fusion(
        encoders,
        num_tabular=data.num_tabular,
        num_outputs=num_outputs,
        hidden_size=section.hidden_size,
    )


def _classifier(study: StudyConfig, name: str, channels: int, num_outputs: int) -> nn.Module:
    return build_classifier(
        name,
        spatial_dims=study.data.dimensions,
        in_channels=channels,
        num_outputs=num_outputs,
        image_size=study.data.image_size,
        norm=study.model.norm,
    )
