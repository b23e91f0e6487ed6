"""`medfed explain`: what a run's model says about one examination, and what made it say so."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from medfed.common.errors import StudyError
from medfed.simulations.explaining.explain import explain_examination


def print_explanation(
    run: Path, images: Sequence[str], columns: Sequence[str], out: Path, site: str
) -> None:
    """Write the explanation into `out` and print the prediction and where the page is."""
    if not images:
        raise StudyError("Expected the image to explain. Add --image FILE.")
    headline, page, grey_levels = explain_examination(run, images, columns, out, site)
    console = Console(soft_wrap=True, highlight=False)
    console.print(headline, markup=False)
    if grey_levels:
        console.print(f"Grey levels  {grey_levels}.", markup=False)
    console.print(f"Page  {page}", markup=False)
