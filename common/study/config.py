"""`StudyConfig`: one federated experiment or training, complete, from one TOML file.

Frozen, and validated as a whole before anything starts. Each field's description gives its unit.
The same file drives simulation and deployment; only `[simulation]` is replaced by each hospital's
own `site.toml`, which is never transmitted.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.aggregation import AggregationSection
from medfed.common.study.algorithms import check_algorithm
from medfed.common.study.augmentation import AugmentationSection
from medfed.common.study.base import Name, Section
from medfed.common.study.compression import CompressionSection, check_compression
from medfed.common.study.data import DataSection
from medfed.common.study.federation import FederationSection
from medfed.common.study.model import (
    CLASSIFIERS,
    ONLY_2D,
    REPORTERS,
    SEGMENTERS,
    WITHOUT_NORM,
    ModelSection,
)
from medfed.common.study.plugins import PluginsSection, check_plugins
from medfed.common.study.privacy import PrivacySection
from medfed.common.study.secure_aggregation import SecureAggregationSection
from medfed.common.study.semi_supervised import SemiSupervisedSection, check_semi_supervised
from medfed.common.study.simulation import SimulationSection
from medfed.common.study.simulation_checks import check_simulation
from medfed.common.study.statistics import StatisticsSection
from medfed.common.study.sweep import SweepSection
from medfed.common.study.task import TaskSection
from medfed.common.study.training import (
    ComputeSection,
    EvaluationSection,
    TrainingSection,
    check_precision,
)


class StudySection(Section):
    """`[study]`: what this study is called and what all its randomness derives from."""

    name: Name
    """Short name: letters, digits, dot, dash, underscore; run folders start with it."""
    description: str = ""
    """One or two sentences for the report."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root seed. Every random stream derives from (seed, purpose, round, site)."""


_MODELS = {"classification": CLASSIFIERS, "segmentation": SEGMENTERS, "report": REPORTERS}


class StudyConfig(Section):
    """The whole study. `common.study_file.load_study` reads one from TOML."""

    study: StudySection
    task: TaskSection
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    augmentation: AugmentationSection = AugmentationSection()
    semi_supervised: SemiSupervisedSection = SemiSupervisedSection()
    training: TrainingSection
    federation: FederationSection = FederationSection()
    aggregation: AggregationSection = AggregationSection()
    compression: CompressionSection = CompressionSection()
    privacy: PrivacySection = PrivacySection()
    secure_aggregation: SecureAggregationSection = SecureAggregationSection()
    statistics: StatisticsSection = StatisticsSection()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()
    plugins: PluginsSection = PluginsSection()
    simulation: SimulationSection | None = None
    sweep: SweepSection | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.privacy.enabled:
            self._check_privacy()
        self._check_model()
        self._check_inputs()
        self._check_statistics()
        self._check_secure_aggregation()
        self._check_aggregation()
        check_algorithm(self)
        check_plugins(self)
        check_semi_supervised(self)
        check_simulation(self)
        check_compression(self)
        check_precision(self)
        return self

    @property
    def _agrees_on_words(self) -> bool:
        return self.task.type == "report" and not self.task.report.vocabulary

    @property
    def _names_words_without_noise(self) -> bool:
        return self._agrees_on_words and self.task.report.words_noise_multiplier is None

    def _check_model(self) -> None:
        fitting = _MODELS[self.task.type]
        if not self.model.is_plugin and self.model.name not in fitting:
            raise ValueError(
                f'model.name = "{self.model.name}" does not fit task.type = "{self.task.type}". '
                f"Set one of {', '.join(fitting)}."
            )
        if self.model.norm == "batch" and self.model.feature_network in WITHOUT_NORM:
            raise ValueError(
                f'model.norm = "batch" has no effect on the {self.model.feature_network}. '
                "Remove it."
            )
        if self.data.dimensions == 3 and self.model.feature_network in ONLY_2D:
            raise ValueError(
                f'model "{self.model.feature_network}" is for images, data.dimensions is 3. '
                "Set model.name to cnn, resnet18, resnet50, densenet121 or unet."
            )

    def _check_inputs(self) -> None:
        if self.data.fit == "patch" and self.task.type != "segmentation":
            raise ValueError(
                f'data.fit = "patch" is for segmentation, the task is {self.task.type}. '
                'Set data.fit = "resize".'
            )
        if self.model.fusion == "late" and not self.data.views:
            raise ValueError('model.fusion = "late" needs data.views. Name them, or remove it.')
        if self.augmentation.multiplicity > 1 and not (
            self.augmentation.enabled or self.data.fit == "patch"
        ):
            raise ValueError(
                f"augmentation.multiplicity = {self.augmentation.multiplicity} without any change: "
                "all versions of an image would be the same. Set one, e.g. augmentation.zoom = 0.1."
            )
        if self.augmentation.flip != "none" and self.task.type == "report":
            raise ValueError(
                "augmentation.flip turns left into right, and the report's words stay. "
                "Remove it; rotation, zoom and intensities are fine."
            )
        if self.uses_fusion and self.task.type != "classification":
            raise ValueError(
                'data.tabular and model.fusion = "late" are for classification, the task is '
                f'{self.task.type}. Remove them; views go in side by side with fusion = "early".'
            )

    def _check_statistics(self) -> None:
        if self.data.harmonise != "none" and not self.statistics.collect:
            raise ValueError(
                f'data.harmonise = "{self.data.harmonise}" without statistics.collect: tables of '
                "grey levels are made from the sites' histograms. Set statistics.collect = true."
            )
        if not (self.statistics.collect and self.privacy.enabled):
            return
        if self.privacy.unit == "site":
            raise ValueError(
                'statistics.collect with privacy.unit = "site": what one site says of its patients '
                "is no part of the noised sum. Remove it."
            )
        if self.statistics.noise_multiplier is None:
            raise ValueError(
                "statistics.collect without noise_multiplier and with privacy.unit = "
                f'"{self.privacy.unit}": no epsilon would cover what the sites say of their '
                "patients. Set statistics.noise_multiplier."
            )

    @property
    def uses_fusion(self) -> bool:
        """Whether the model takes (images, present, tabular) instead of images alone."""
        return self.model.fusion == "late" or bool(self.data.tabular)

    def _check_privacy(self) -> None:
        if self.model.norm == "batch":
            raise ValueError(
                'model.norm = "batch" with privacy.unit = '
                f'"{self.privacy.unit}": BatchNorm mixes patients, so no per-patient bound holds. '
                'Set model.norm = "group", or privacy.unit = "none" for a run without privacy.'
            )
        if self.training.local_steps is None and self.privacy.at_sites:
            raise ValueError(
                f'training.local_epochs with privacy.unit = "{self.privacy.unit}": the number of '
                "steps would reveal the private count. Set training.local_steps instead."
            )
        if self._names_words_without_noise:
            raise ValueError(
                f"task.report without words_noise_multiplier and with privacy.unit = "
                f'"{self.privacy.unit}": no epsilon would cover the words that sites name. Set '
                "task.report.words_noise_multiplier, or name a public task.report.vocabulary."
            )
        if self.privacy.unit == "site" and self._agrees_on_words:
            raise ValueError(
                'task.report without a vocabulary and with privacy.unit = "site": words that '
                "sites name are no part of the noised sum. Name a public task.report.vocabulary."
            )
        if self.federation.weighting != "auto" and self.privacy.unit == "site":
            if self.federation.weighting != "uniform":
                raise ValueError(
                    f'federation.weighting = "{self.federation.weighting}" with privacy.unit = '
                    '"site": one bound holds for all updates, so all weigh the same. Set "uniform".'
                )
        elif self.federation.weighting == "examples":
            raise ValueError(
                'federation.weighting = "examples" with privacy.unit = '
                f'"{self.privacy.unit}": the number of examples is private. '
                'Set federation.weighting = "uniform" or "public".'
            )

    def _check_secure_aggregation(self) -> None:
        secure = self.secure_aggregation
        if secure.distributed_noise != "none" and not (
            secure.enabled and self.privacy.unit == "site"
        ):
            raise ValueError(
                f'secure_aggregation.distributed_noise = "{secure.distributed_noise}" is for '
                'privacy.unit = "site" with secure_aggregation.enabled = true. Set both, or remove '
                "it."
            )
        if secure.distributed_noise != "none" and self.federation.fraction < 1:
            raise ValueError(
                "secure_aggregation.distributed_noise with federation.fraction below 1: a server "
                "that draws the sites knows the draw, which then hides nobody. Set fraction = 1."
            )
        if secure.enabled and self.privacy.unit == "site" and secure.distributed_noise == "none":
            raise ValueError(
                'privacy.unit = "site" with secure_aggregation.enabled = true: a server that sees '
                "only the sum cannot clip one site's update. Set "
                'secure_aggregation.distributed_noise = "discrete_gaussian".'
            )
        if secure.enabled and self.federation.min_sites < 2:
            raise ValueError(
                "federation.min_sites = 1 with secure_aggregation.enabled = true: the sum over one "
                "site is that site's update. Set federation.min_sites = 2 or more."
            )
        if secure.enabled and self.weighting == "examples":
            raise ValueError(
                'federation.weighting = "examples" with secure_aggregation.enabled = true: the '
                'server would be told each site\'s number. Set federation.weighting = "public" or '
                '"uniform".'
            )
        if self.privacy.unit == "site" and self.privacy.site.adaptive_quantile and secure.enabled:
            raise ValueError(
                "privacy.site.adaptive_quantile with secure_aggregation: the count of clipped "
                "sites is not part of the sum. Remove one of the two."
            )

    def _check_aggregation(self) -> None:
        this = self.aggregation
        if not (this.robust or this.max_norm):
            return
        asked = f'aggregation.rule = "{this.rule}"'
        if not this.robust:
            asked = f"aggregation.max_norm = {this.max_norm:g}"
        if self.secure_aggregation.enabled:
            raise ValueError(
                f"{asked} with secure_aggregation.enabled = true: a server that sees only the sum "
                "cannot tell one update from another. Remove one of the two."
            )
        if self.privacy.unit == "site":
            raise ValueError(
                f'{asked} with privacy.unit = "site": its noise is for the mean of updates clipped '
                "to privacy.site.max_update_norm, which bounds each site already. Remove it."
            )
        if not this.robust:
            return
        if self.weighting != "uniform":
            raise ValueError(
                f'federation.weighting = "{self.weighting}" with {asked}: a site that counts for '
                "more needs no accomplices, so all count the same. Set federation.weighting = "
                '"auto" or "uniform".'
            )
        if self.federation.min_sites < this.min_updates:
            raise ValueError(
                f"federation.min_sites = {self.federation.min_sites} with {asked}: against "
                f"{this.num_byzantine} it holds from {this.min_updates} updates on. Set "
                f"federation.min_sites = {this.min_updates} or more, or a smaller "
                "aggregation.num_byzantine."
            )

    @property
    def weighting(self) -> Literal["examples", "uniform", "public"]:
        """`federation.weighting` with auto resolved."""
        if self.federation.weighting == "auto":
            one_each = self.aggregation.robust or self.federation.counts_sites_once
            if self.privacy.unit == "site" or one_each:
                return "uniform"
            return (
                "public" if self.privacy.enabled or self.secure_aggregation.enabled else "examples"
            )
        return self.federation.weighting

    def for_sites(self) -> "StudyConfig":
        """Return what the server sends: no `[simulation]` or `[sweep]`, files by name not by path.

        A site finds a weights file by its hash; a vocabulary travels with the messages.
        """
        model, report = self.model, self.task.report
        if "://" not in model.weights:
            model = model.model_copy(update={"weights": PurePath(model.weights).name})
        report = report.model_copy(update={"vocabulary": PurePath(report.vocabulary).name})
        task = self.task.model_copy(update={"report": report})
        plugins = self.plugins.model_copy(update={"dataset": ""})
        own = {"simulation": None, "sweep": None, "plugins": plugins}
        return self.model_copy(update={**own, "model": model, "task": task})

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces, defaults written out."""
        return self._json

    # Asked for several times a message, in which training may be three steps.
    @cached_property
    def _json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.for_sites().to_json().encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values; see pydantic."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("_json", "_digest"):  # pydantic copies what was worked out, too
            copied.__dict__.pop(name, None)
        return copied

    def __hash__(self) -> int:
        # Sites keep data by study; tables of a study are dictionaries, which have no hash.
        return hash(self.to_json())

    def digest(self) -> str:
        """Return the SHA-256 of what sites see; it names this study in ledgers and checkpoints."""
        return self._digest


def to_plain(study: StudyConfig) -> dict[str, Any]:
    """Return nested dictionaries without None, ready for TOML."""
    return study.model_dump(mode="json", exclude_none=True)
