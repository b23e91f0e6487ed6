"""Metrics as integer sums: what sites send adds up to what the pooled data would have given."""

from medfed.common.metrics.classification import (
    CLASSIFICATION_FAMILIES,
    LOG_ODDS_RANGE,
    NUM_BINS,
    NUM_CALIBRATION_BINS,
    Mode,
    classification_metrics,
    classification_sums,
    confusion_tables,
    sum_shapes,
)
from medfed.common.metrics.ordinal import ordinal_metrics, quadratic_kappa
from medfed.common.metrics.segmentation import (
    SEGMENTATION_FAMILIES,
    segmentation_metrics,
    segmentation_shapes,
    segmentation_sums,
)
from medfed.common.metrics.sums import FIXED_POINT, Families, MetricSums, add_sums, of_families
from medfed.common.metrics.text import TEXT_FAMILIES, TEXT_SHAPES, text_metrics, text_sums

__all__ = [
    "CLASSIFICATION_FAMILIES",
    "FIXED_POINT",
    "LOG_ODDS_RANGE",
    "NUM_BINS",
    "NUM_CALIBRATION_BINS",
    "SEGMENTATION_FAMILIES",
    "TEXT_FAMILIES",
    "TEXT_SHAPES",
    "Families",
    "MetricSums",
    "Mode",
    "add_sums",
    "classification_metrics",
    "classification_sums",
    "confusion_tables",
    "of_families",
    "ordinal_metrics",
    "quadratic_kappa",
    "segmentation_metrics",
    "segmentation_shapes",
    "segmentation_sums",
    "sum_shapes",
    "text_metrics",
    "text_sums",
]
