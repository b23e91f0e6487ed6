"""What the model is made of: the network, what of it is sent, where its weights started."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from medfed.common.study import AugmentationSection, DataSection, StudyConfig
from medfed.common.study.model import REPORTERS, WITHOUT_NORM
from medfed.simulations.reporting.tables import counted, num_bytes, whole

if TYPE_CHECKING:
    from medfed.simulations.reporting.run_data import RunData

# Weights travel as float32.
_NUMBER_BYTES = 4
_AMOUNTS = {
    "rotate_degrees": "rotation to ±{:g}°",
    "shear_degrees": "shear to ±{:g}°",
    "translate": "shift to ±{:.0%}",
    "zoom": "zoom to ±{:.0%}",
    "rescale": "intensity to ±{:.0%}",
    "brightness": "brightness to ±{:g}",
    "gamma": "gamma to ±{:.0%}",
    "noise": "noise to {:g} (standard deviation)",
}


@dataclass(frozen=True)
class ModelSize:
    """How many numbers the model has.

    Attributes:
        trained: Those that train: all that is sent and aggregated.
        frozen: The others; None before the final model is written.
    """

    trained: int
    frozen: int | None


def read_model_size(arm: Path, state: Mapping[str, Any]) -> ModelSize | None:
    """Count from the files of an arm; only their headers are read.

    Args:
        arm: The arm's folder.
        state: `checkpoint/state.json`, or nothing where there is none.

    Raises:
        KeyError, ValueError: Files that disagree or are damaged.
    """
    if not state:
        return None
    final, last = arm / "model.safetensors", PurePath(str(state["weights"])).name
    whole_model = final.exists()
    sizes = _sizes(final if whole_model else arm / "checkpoint" / last)
    trained = sum(sizes[name] for name in state["names"])
    return ModelSize(trained, sum(sizes.values()) - trained if whole_model else None)


def _sizes(path: Path) -> dict[str, int]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__})") from None


def model_rows(run: "RunData") -> tuple[tuple[str, str], ...]:
    """Return what the model is made of, for the page."""
    study = run.study
    size = run.federated.model_size if run.federated else None
    rows = [("Network", _network(study)), ("Input", _input(study.data))]
    if size is not None:
        sent = f"{whole(size.trained)} numbers ({num_bytes(size.trained * _NUMBER_BYTES)})"
        rows += [("Trains and is sent", sent), ("Frozen", _frozen(size, study))]
    rows += [("What trains", _trains(study)), ("Weights start from", _weights(study))]
    rows.append(("Augmentation", _changes(study)))
    if study.augmentation.enabled and study.augmentation.multiplicity > 1:
        rows.append(("Versions of an image in a step", _versions(study)))
    if study.federation.ema_decay:
        rows.append(("Published", published(study)))
    if study.federation.keeps_at_sites:
        rows.append(("Each site's own", sites_own(study)))
    return tuple(rows)


def sites_own(study: StudyConfig) -> str:
    """Say what of the model each site has for itself, of a study where it has something."""
    if study.federation.algorithm == "fedbn":
        return (
            "normalisations with their statistics: figures are of the global weights with those of "
            "the site. They never travel; model.safetensors has them as before the first round"
        )
    return (
        f"a personal model ({study.federation.algorithm}), which never travels: figures of the "
        "federated arm are of these, each on its own site's images. model.safetensors is the "
        "global model, whose figures stand beside them"
    )


def published(study: StudyConfig) -> str:
    """Say that what is published is an average over rounds; empty where it is not."""
    decay = study.federation.ema_decay
    if not decay:
        return ""
    return (
        f"the exponential moving average of the global weights over the rounds (decay {decay:g}), "
        "which is evaluated too; sites go on from the latest weights"
    )


def _trains(study: StudyConfig) -> str:
    freeze, rank = study.model.freeze, study.model.low_rank
    frozen = {
        "none": "all weights",
        "backbone": "the last layer; the backbone is frozen",
        "weights": "biases, the affine part of normalisation and the last layer (BitFiT)",
    }
    what = f"all but what is named {', '.join([freeze] if isinstance(freeze, str) else freeze)}"
    if isinstance(freeze, str) and freeze in frozen:
        what = frozen[freeze]
    if rank is None:
        return what
    if freeze == "none":  # common/models freezes what the matrices stand beside
        what = "the last layer"
    return (
        f"{what}; beside each frozen convolution and linear layer a product of rank {rank} (LoRA)"
    )


def _network(study: StudyConfig) -> str:
    model = study.model
    parts = [f"{model.name} on {model.encoder}" if model.name in REPORTERS else model.name]
    if model.feature_network not in WITHOUT_NORM:
        parts.append(f"{model.norm} normalisation")
    if model.weight_standardisation:
        parts.append("weight standardisation of convolutions")
    if study.uses_fusion:
        parts.append(f"{model.fusion} fusion")
    return ", ".join(parts)


def _input(data: DataSection) -> str:
    unit = "voxels" if data.dimensions == 3 else "pixels"
    parts = [" by ".join([str(data.image_size)] * data.dimensions) + f" {unit}"]
    if data.fit == "patch":
        parts[0] = f"patches of {parts[0]}"
        parts += [f"cubic voxels of {data.spacing_mm:g} mm"] if data.spacing_mm else []
        parts += [f"longer side {data.stored_size} pixels"] if data.stored_size else []
    parts.append(counted(data.channels, "channel"))
    if data.views:
        parts[-1] += f" of each view: {', '.join(data.views)}"
    if data.tabular:
        parts.append(f"columns {', '.join(data.tabular)}")
    return "; ".join(parts)


def _frozen(size: ModelSize, study: StudyConfig) -> str:
    if size.frozen is None:
        return "counted when the run has finished"
    if not size.frozen:
        return "nothing"
    if study.federation.algorithm == "fedbn":
        return f"{whole(size.frozen)} numbers never travel, each site's own among them"
    return f"{whole(size.frozen)} numbers; they never travel, their hash is compared at every site"


def _weights(study: StudyConfig) -> str:
    if not study.model.weights:
        return "random numbers drawn by the study's seed"
    pinned = study.model.weights_sha256
    name = PurePath(study.model.weights).name
    return f"{name}, SHA-256 {pinned}" if pinned else name


def _changes(study: StudyConfig) -> str:
    section: AugmentationSection = study.augmentation
    if not section.enabled:
        return "none"
    flips = {"both": "horizontal and vertical"}.get(section.flip, section.flip)
    parts = [] if section.flip == "none" else [f"{flips} flip"]
    amounts = section.model_dump()
    parts += [text.format(amounts[key]) for key, text in _AMOUNTS.items() if amounts[key]]
    return f"{', '.join(parts)}; each with probability {section.probability:g}"


def _versions(study: StudyConfig) -> str:
    number = study.augmentation.multiplicity
    if study.privacy.enabled:
        return f"{number}, averaged within the patient's gradient before it is clipped"
    return f"{number}, each of them an image of the batch"
