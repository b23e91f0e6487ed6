"""`StudyConfig`: one federated experiment or training, complete, from one TOML file.

Frozen, and validated as a whole before anything starts. Each field's description gives its unit.
The same file drives simulation and deployment; only `[simulation]` is replaced by each hospital's
own `site.toml`, which is never transmitted.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """One frozen table of the study file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StudySection(Section):
    """`[study]`: what this study is called and what all its randomness derives from."""

    name: Name
    """Short name: letters, digits, dot, dash, underscore; run folders start with it."""
    description: str = ""
    """One or two sentences for the report."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root seed. Every random stream derives from (seed, purpose, round, site)."""


class TaskSection(Section):
    """`[task]`: what the model predicts."""

    type: Literal["classification"] = "classification"
    """The task; classification is the one there is today."""
    mode: Literal["multiclass", "multilabel"] = "multiclass"
    """multiclass: exactly one class an image. multilabel: any number, none included."""
    classes: tuple[str, ...] = Field(min_length=2)
    """The label set, in the order of the model's outputs."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a name twice. Name every class once.")
        return self


class DataSection(Section):
    """`[data]`: how images enter the model. Public constants, never computed from private data."""

    image_size: int = Field(default=64, ge=16, le=1024)
    """Height and width after resampling, pixels."""
    channels: Literal[1, 3] = 1
    """1 grey, 3 RGB."""
    mean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Subtracted from pixels scaled to 0..1."""
    std: PositiveFloat = 0.25
    """Divides the result."""


class ModelSection(Section):
    """`[model]`: the network."""

    name: Literal["cnn", "densenet121", "resnet18", "resnet50"] = "cnn"
    """cnn is the small one (Conv 32, pool, Conv 64, pool, Dense 128); the others are MONAI's."""
    norm: Literal["group", "batch"] = "group"
    """Normalisation of densenet and resnet. BatchNorm mixes patients: refused under DP."""


class TrainingSection(Section):
    """`[training]`: what a site does in one round."""

    rounds: PositiveInt = 10
    """Federated rounds."""
    batch_size: PositiveInt = 32
    """Images a step without DP; under DP the batch is Poisson and this is unused."""
    local_epochs: PositiveInt | None = None
    """Passes over the site's images a round (without DP). Give this or local_steps."""
    local_steps: PositiveInt | None = None
    """Optimiser steps a round. Required under DP, where passes would reveal the private count."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Local optimiser, fresh every round."""
    learning_rate: PositiveFloat = 0.05
    """Step size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError(
                "expected exactly one of local_epochs and local_steps, got "
                + ("neither" if self.local_epochs is None else "both")
                + ". Set training.local_epochs = 1, or training.local_steps under DP."
            )
        return self


class FederationSection(Section):
    """`[federation]`: who takes part and how updates are combined."""

    algorithm: Literal["fedavg"] = "fedavg"
    """Aggregation rule."""
    weighting: Literal["auto", "examples", "uniform", "public"] = "auto"
    """A site's weight: its number of training images; one; or the public_num_patients that its
    site.toml states (one each where a site states none). Under DP the true count is private, so
    examples is refused; auto is examples without DP and public with it."""
    fraction: Fraction = 1.0
    """Share of the joined sites that takes part in each round."""
    min_sites: PositiveInt = 2
    """Quorum: sites that must join before round 1, and answer in every round."""
    join_timeout_s: PositiveFloat = 600.0
    """How long the server waits for min_sites to join, seconds."""
    round_timeout_s: PositiveFloat = 3600.0
    """Deadline of a round, seconds; it completes with the sites that answered by then."""


class PrivacySection(Section):
    """`[privacy]`: differential privacy of each site's training."""

    unit: Literal["patient", "record", "none"] = "patient"
    """Whose contribution one epsilon covers. none: no privacy, and the report says so."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e3, allow_inf_nan=False)] = 1.0
    """Noise standard deviation over max_grad_norm; below 0.1 no useful epsilon is left."""
    max_grad_norm: PositiveFloat = 1.0
    """L2 bound on one unit's gradient."""
    sample_rate: Fraction = 0.1
    """Public probability that a patient enters a step (Poisson)."""
    expected_batch_size: PositiveFloat = 16.0
    """Public divisor of the noisy sum, units (patients or records) a step, for sites whose
    site.toml states no public_num_patients."""
    images_per_patient: PositiveInt = 4
    """K: at most so many of a patient's images enter a step, chosen at random."""
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta at which epsilon is stated."""
    chunk: PositiveInt = 16
    """Units whose gradients are held at once; bounds memory, changes no result beyond rounding."""

    @property
    def enabled(self) -> bool:
        """Whether training is differentially private."""
        return self.unit != "none"


class EvaluationSection(Section):
    """`[evaluation]`: the held-out split."""

    every: PositiveInt = 1
    """Evaluate after every so many rounds; the last round always."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each site's patients held out where the data set has no official split."""
    batch_size: PositiveInt = 128
    """Images a forward pass."""


class ComputeSection(Section):
    """`[compute]`: arithmetic that must be the same everywhere for bit-equal results."""

    threads: PositiveInt = 1
    """CPU threads of one site's training step."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where a site trains unless its site.toml says otherwise; auto takes a GPU if there is one."""


class PartitionSection(Section):
    """`[simulation.partition]`: how a data set becomes sites. Always by patient."""

    method: Literal["iid", "dirichlet", "quantity", "natural"] = "iid"
    """iid; dirichlet label skew; quantity skew (log-normal sizes); natural (a metadata column)."""
    num_sites: PositiveInt = 4
    """Fake hospitals; natural takes one for each value of the column."""
    alpha: PositiveFloat = 0.5
    """Dirichlet concentration: small is skewed."""
    sigma: PositiveFloat = 1.0
    """Standard deviation of log site size (quantity)."""
    column: str = ""
    """Metadata column whose values are the sites (natural)."""
    min_patients: PositiveInt = 8
    """Patients every site must have; a natural site with fewer is left out and reported."""

    @model_validator(mode="after")
    def _column(self) -> Self:
        if self.method == "natural" and not self.column:
            raise ValueError(
                'expected column with method = "natural", got none. '
                'Name the metadata column, e.g. column = "dataset".'
            )
        return self


class PhantomSection(Section):
    """`[simulation.phantom]`: size of the procedural cohort."""

    num_patients: PositiveInt = 1200
    """Patients in the whole cohort."""
    max_images_per_patient: PositiveInt = 3
    """Each patient has 1 to this many images."""
    num_scanners: Annotated[int, Field(ge=1, le=64)] = 4
    """Scanners, each with its own physics, prevalence and wording (the column scanner)."""
    modality: Literal["xray", "ct"] = "xray"
    """Chest radiograph-like or CT-slice-like images."""


class SimulationSection(Section):
    """`[simulation]`: what stands in for hospitals. Not sent to sites."""

    dataset: Literal["phantom", "ham10000", "medmnist"]
    """The data set; `medfed simulate --data FOLDER` says where its files are."""
    name: str = ""
    """Which set of a family, e.g. pneumoniamnist."""
    data: str = ""
    """Folder or file of the data set; relative to the study file. `--data` overrides it."""
    arms: tuple[Literal["federated", "pooled", "local"], ...] = ("federated", "pooled", "local")
    """What to train: the federation, all data in one place, every site alone."""
    max_epsilon: PositiveFloat = 10.0
    """Budget in each simulated site's policy for its data set: epsilon at target_delta."""
    public_num_patients: dict[str, PositiveInt] = Field(default_factory=dict)
    """Patients that a site states publicly, by site name; used under DP instead of counts."""
    partition: PartitionSection = PartitionSection()
    phantom: PhantomSection = PhantomSection()

    @model_validator(mode="after")
    def _arms(self) -> Self:
        if "federated" not in self.arms:
            raise ValueError('expected "federated" among arms. Add it: it is what this runs.')
        return self


class StudyConfig(Section):
    """The whole study. `common.study_file.load_study` reads one from TOML."""

    study: StudySection
    task: TaskSection
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection
    federation: FederationSection = FederationSection()
    privacy: PrivacySection = PrivacySection()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()
    simulation: SimulationSection | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.privacy.enabled:
            self._check_privacy()
        if self.model.name == "cnn" and self.model.norm == "batch":
            raise ValueError('model.norm = "batch" has no effect on the cnn. Remove it.')
        return self

    def _check_privacy(self) -> None:
        if self.model.norm == "batch":
            raise ValueError(
                'model.norm = "batch" with privacy.unit = '
                f'"{self.privacy.unit}": BatchNorm mixes patients, so no per-patient bound holds. '
                'Set model.norm = "group", or privacy.unit = "none" for a run without privacy.'
            )
        if self.training.local_steps is None:
            raise ValueError(
                f'training.local_epochs with privacy.unit = "{self.privacy.unit}": the number of '
                "steps would reveal the private count. Set training.local_steps instead."
            )
        if self.federation.weighting == "examples":
            raise ValueError(
                'federation.weighting = "examples" with privacy.unit = '
                f'"{self.privacy.unit}": the number of examples is private. '
                'Set federation.weighting = "uniform" or "public".'
            )

    @property
    def weighting(self) -> Literal["examples", "uniform", "public"]:
        """`federation.weighting` with auto resolved."""
        if self.federation.weighting == "auto":
            return "public" if self.privacy.enabled else "examples"
        return self.federation.weighting

    def for_sites(self) -> "StudyConfig":
        """Return what the server sends: the study without `[simulation]`."""
        return self.model_copy(update={"simulation": None})

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, defaults written out."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Return the SHA-256 of what sites see; it names this study in ledgers and checkpoints."""
        return hashlib.sha256(self.for_sites().to_json().encode()).hexdigest()


def to_plain(study: StudyConfig) -> dict[str, Any]:
    """Return nested dictionaries without None, ready for TOML."""
    return study.model_dump(mode="json", exclude_none=True)
