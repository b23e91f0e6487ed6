"""`StudyConfig`: one federated experiment or training, section by section."""

from medfed.common.study.augmentation import AugmentationSection
from medfed.common.study.base import Fraction, Name, PositiveFloat, PositiveInt, Section
from medfed.common.study.compression import CompressionSection
from medfed.common.study.config import StudyConfig, StudySection, to_plain
from medfed.common.study.data import ColumnSection, DataSection
from medfed.common.study.federation import FederationSection
from medfed.common.study.model import ModelSection
from medfed.common.study.plugins import PluginsSection
from medfed.common.study.privacy import PrivacySection, SiteLevelSection
from medfed.common.study.secure_aggregation import SecureAggregationSection
from medfed.common.study.simulation import PartitionSection, PhantomSection, SimulationSection
from medfed.common.study.statistics import StatisticsSection
from medfed.common.study.task import ReportSection, TaskSection
from medfed.common.study.training import (
    ComputeSection,
    EvaluationSection,
    TrainingSection,
)

__all__ = [
    "AugmentationSection",
    "ColumnSection",
    "CompressionSection",
    "ComputeSection",
    "DataSection",
    "EvaluationSection",
    "FederationSection",
    "Fraction",
    "ModelSection",
    "Name",
    "PartitionSection",
    "PhantomSection",
    "PluginsSection",
    "PositiveFloat",
    "PositiveInt",
    "PrivacySection",
    "ReportSection",
    "Section",
    "SecureAggregationSection",
    "SimulationSection",
    "SiteLevelSection",
    "StatisticsSection",
    "StudyConfig",
    "StudySection",
    "TaskSection",
    "TrainingSection",
    "to_plain",
]
