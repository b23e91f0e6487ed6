"""Divides a cohort into fake hospitals, and gives each of them its own scanner and mistakes.

Read in this order: cohort (the patients), divide (a study's partition, from beginning to end),
sizes, drawn and classes (sites that a draw makes), columns and dates (sites that the metadata
name), repair (the least that every site has); then seen (the store as the sites have it), made of
shift (scanners) and noise (wrong labels); describe (a table of all that).

Always by patient: all images of a patient end up at one site. Whole patients are counted, so a
site's share of images follows from its patients.
"""

from medfed.simulations.partition.cohort import SEPARATOR, Cohort, cohort_of
from medfed.simulations.partition.columns import MAX_MIXED_SHARE, site_name
from medfed.simulations.partition.divide import Partition, partition_patients

__all__ = [
    "MAX_MIXED_SHARE",
    "SEPARATOR",
    "Cohort",
    "Partition",
    "cohort_of",
    "partition_patients",
    "site_name",
]
