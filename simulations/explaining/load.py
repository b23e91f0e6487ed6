"""A run's model, global or a site's own; an examination from files, prepared as its images were.

Shapes: V views, C channels a view, *S spatial, F numbers of the tabular columns.
"""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfed.client.batches import encode_column, scaled, standardised
from medfed.client.data.fitting import fit_image, fit_views
from medfed.client.site import SiteConfig, load_site
from medfed.common.errors import DataError, RunError, StudyError
from medfed.common.models import build_model, trained_state
from medfed.common.state_dicts import digest, read_state, write_state
from medfed.common.study import DataSection, StudyConfig
from medfed.common.study_file import load_study
from medfed.common.tasks import Task, make_task
from medfed.server.checkpoint import read_weights
from medfed.simulations.explaining.files import read_file

_SINGLE = "image"


@dataclass(frozen=True)
class Trained:
    """A run's federated model.

    Attributes:
        run: The run's name.
        study: The run's study.
        task: What the model's outputs mean.
        model: In evaluation mode, on the CPU.
        weights_sha256: `common.state_dicts.digest` of what was trained; of the global model
            rounds.jsonl names it too.
        site: Whose model it is; empty for the global one.
        alpha: With apfl, the share of the site's own weights in its model; else None.
    """

    run: str
    study: StudyConfig
    task: Task
    model: nn.Module
    weights_sha256: str
    site: str = ""
    alpha: float | None = None


@dataclass(frozen=True)
class Examination:
    """One examination, as the model sees it.

    Attributes:
        views: Names of the views in the order of the channels; one, "image", without views.
        pixels: uint8 [V*C, *S]; a view that is missing is black.
        present: uint8 [V], 1 where a view is there.
        columns: Metadata as text, by column.
        sha256: Hash of each file, by view. Names of files may hold those of patients.
        grey_levels: With data.harmonise, what was done to them; else empty.
    """

    views: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    present: npt.NDArray[np.uint8]
    columns: Mapping[str, str]
    sha256: Mapping[str, str]
    grey_levels: str = ""

    def view_pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one view's channels, [C, *S]."""
        channels = len(self.pixels) // len(self.views)
        return self.pixels[index * channels : (index + 1) * channels]


def load_trained(run: Path, site: str = "") -> Trained:
    """Build the federated model of a run folder with its final weights.

    Args:
        run: Run folder.
        site: Of a run with fedbn, ditto or apfl: the site whose own model it is to be. A name of
            a simulated one, or a hospital's site.toml; empty for the global model. With
            data.harmonise it may be a site of any run, and the model be the global one.

    Raises:
        RunError: Not a run folder, one without a final model, or weights that do not fit; no such
            site, or one that keeps nothing of this run.
    """
    study_file = run / "study.toml"
    if not study_file.is_file():
        raise RunError(
            f"Expected a run folder with study.toml at {run}, found none. "
            "Name a folder that `medfed simulate` made, such as runs/<name>."
        )
    arm = run / "arms" / "federated"
    if not (arm / "model.safetensors").is_file():
        raise RunError(
            f"{run} has no federated model yet. Bring the run to its end with "
            f"`medfed simulate --resume {shlex.quote(str(run))}`."
        )
    study = load_study(study_file)
    task = make_task(study, _words(arm, study))
    name = run.resolve().name
    if site and study.federation.keeps_at_sites:
        return _trained_at(_owner(site, arm), arm, name, study, task)
    if site and study.data.harmonise == "none":
        raise RunError(
            f'--site {site} with federation.algorithm = "{study.federation.algorithm}": all sites '
            "use the global model. Leave --site out."
        )
    if study.federation.algorithm == "fedbn":
        raise RunError(
            f"{run} was trained by fedbn: its global model has no normalisations of its own, each "
            "site keeps its own. Name the site whose model it is to be, as `medfed explain --site` "
            "does, or a run of another algorithm."
        )
    model = _global_model(arm, study, task)
    return Trained(name, study, task, model, digest(trained_state(model)))


def _global_model(arm: Path, study: StudyConfig, task: Task) -> nn.Module:
    # What training started from is overwritten, and its file may be gone.
    section = study.model.model_copy(update={"weights": "", "weights_sha256": ""})
    model = build_model(study.model_copy(update={"model": section}), task.num_outputs)
    write_state(model, read_weights(arm / "model.safetensors", list(read_state(model))))
    # As many threads as at a site: their number decides how sums are rounded.
    torch.set_num_threads(study.compute.threads)
    return model.eval()


def site_here(site: str, arm: Path) -> SiteConfig | None:
    """Return a site whose folder is here: a file is a hospital's, a name a simulated site's."""
    if site.endswith(".toml"):
        return load_site(Path(site))
    if site not in _simulated(arm):
        return None
    return load_site(arm / "sites" / site / "site.toml")


def _simulated(arm: Path) -> list[str]:
    return sorted(path.parent.name for path in (arm / "sites").glob("*/site.toml"))


def _owner(site: str, arm: Path) -> SiteConfig:
    owner = site_here(site, arm)
    if owner is None:
        simulated = ", ".join(_simulated(arm)) or "none: it was not simulated"
        raise RunError(
            f"Expected the name of a site of this run, or a hospital's site.toml, got {site!r}. "
            f"Simulated sites of this run: {simulated}."
        )
    return owner


def _trained_at(owner: SiteConfig, arm: Path, name: str, study: StudyConfig, task: Task) -> Trained:
    for file in ("plan.json", "rounds.jsonl"):
        if not (arm / file).is_file():
            raise RunError(
                f"Expected {arm / file}, which says what of a site belongs to this model, found "
                "none. Copy the whole run folder."
            )
    # It imports Flower, which takes seconds and is not needed for a global model.
    from medfed.simulations.held_out import FinalModels

    models = FinalModels(arm, study, task)
    model, alpha = models.kept_by(owner), models.alpha_of(owner)
    return Trained(name, study, task, model, digest(trained_state(model)), owner.name, alpha)


def load_examination(
    images: Sequence[str], columns: Sequence[str], study: StudyConfig
) -> Examination:
    """Read the files of one examination and fit them as the study's images were.

    Args:
        images: FILE, or VIEW=FILE for a study with views; views may be missing.
        columns: COLUMN=VALUE for each known metadata column.
        study: The run's study.

    Raises:
        StudyError: Views or columns that the study does not have.
        DataError: A file that cannot be read or does not fit.
    """
    section = study.data
    files = _by_view(images, section)
    read = {view: read_file(path, section) for view, path in files.items()}
    if section.views:
        pixels, present = fit_views(
            {view: image.pixels for view, image in read.items()}, section, "the examination"
        )
    else:
        [image], [path] = read.values(), files.values()
        pixels = fit_image(image.pixels, section, str(path), image.spacing_mm)
        present = np.ones(1, dtype=np.uint8)
    return Examination(
        views=section.views or (_SINGLE,),
        pixels=pixels,
        present=present,
        columns=_columns(columns, section),
        sha256={view: hashlib.sha256(p.read_bytes()).hexdigest() for view, p in files.items()},
    )


def model_inputs(examination: Examination, study: StudyConfig) -> tuple[Tensor, ...]:
    """Return what the model is called with, each [1, ...]: as `client.batches` makes it."""
    section = study.data
    images = standardised(scaled(examination.pixels[None], torch.device("cpu")), section)
    present = torch.from_numpy(examination.present[None]).float()
    if section.views:
        over_channels = present.repeat_interleave(section.channels, dim=1)
        images = images * over_channels.reshape(1, -1, *[1] * section.dimensions)
    if not study.uses_fusion:
        return (images,)
    columns = [
        encode_column((examination.columns.get(name, ""),), column)
        for name, column in section.tabular.items()
    ]
    tabular = np.concatenate([np.zeros((1, 0), dtype=np.float32), *columns], axis=1)
    return (images, present, torch.from_numpy(tabular))


def _words(arm: Path, study: StudyConfig) -> tuple[str, ...]:
    if study.task.type != "report":
        return ()
    # It imports Flower, which takes seconds and is not needed for anything else here.
    from medfed.server.words import VOCABULARY_FILE, read_vocabulary

    return read_vocabulary(arm / VOCABULARY_FILE)


def _by_view(images: Sequence[str], section: DataSection) -> dict[str, Path]:
    if not section.views:
        if len(images) != 1:
            raise StudyError(
                f"Expected one --image for a study without views, got {len(images)}. "
                "Explain one image at a time."
            )
        return {_SINGLE: _existing(images[0])}
    files: dict[str, Path] = {}
    for text in images:
        view, separator, name = text.partition("=")
        if not separator or view not in section.views or view in files:
            raise StudyError(
                f"Expected --image VIEW=FILE, each of {', '.join(section.views)} at most once, "
                f"got {text!r}. Example: --image {section.views[0]}=scan.png"
            )
        files[view] = _existing(name)
    if not files:
        raise StudyError(f"Expected --image {section.views[0]}=FILE, got none.")
    return files


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise DataError(f"Expected an image file at {path}, found none. Check --image.")
    return path


def _columns(columns: Sequence[str], section: DataSection) -> dict[str, str]:
    known: dict[str, str] = {}
    for text in columns:
        name, separator, value = text.partition("=")
        if not separator or name not in section.tabular:
            names = ", ".join(section.tabular) or "none"
            raise StudyError(
                f"Expected --column NAME=VALUE for a column of the study ({names}), got {text!r}."
            )
        known[name] = value
    return known
