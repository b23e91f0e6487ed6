"""The embedded cohort: procedural patients whose labels, masks, reports and pixels all agree.

Read in this order: findings (what is true), scanners (how each fake site sees it), rendering
(xray and ct on a canvas), reports, cohort (the data set), identities (real DICOM files).
"""

from medfed.simulations.phantom.cohort import load_phantom
from medfed.simulations.phantom.identities import write_dicom

__all__ = ["load_phantom", "write_dicom"]
