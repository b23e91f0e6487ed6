"""`medfed data result`: a prediction as a DICOM object, to be stored in the hospital's PACS."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medfed.client.data.results.maker import Maker
    from medfed.client.data.results.sources import Sources


def result(
    kind: Annotated[
        Literal["seg", "sr", "sc"],
        typer.Option(help="Segmentation, structured report or secondary capture."),
    ],
    source: Annotated[Path, typer.Option(help="The DICOM image, or the folder of one series.")],
    out: Annotated[Path, typer.Option(help="File for the object. It names the patient.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    model_version: Annotated[str, typer.Option(help="Which of its states: run, round or hash.")],
    mask: Annotated[
        Path | None, typer.Option(help="seg: PNG, .npy or .nii.gz; 0 is background.")
    ] = None,
    segment: Annotated[
        list[str] | None, typer.Option(help="seg: name of value 1, then of 2, ...")
    ] = None,
    axes: Annotated[
        Literal["slices", "ras"],
        typer.Option(help="seg, .npy: slices, rows, columns; or turned as in a store."),
    ] = "slices",
    scores: Annotated[
        Path | None, typer.Option(help='sr: JSON, {"class": probability, ...}.')
    ] = None,
    text: Annotated[Path | None, typer.Option(help="sr: a generated report, UTF-8.")] = None,
    picture: Annotated[Path | None, typer.Option(help="sc: PNG or JPEG.")] = None,
) -> None:
    """Make a DICOM object of a prediction: patient and study of its images, marked unverified."""
    from medfed.client.data.results.files import write_object
    from medfed.client.data.results.maker import Maker
    from medfed.client.data.results.sources import read_sources

    sources, maker = read_sources(source), Maker(model, model_version)
    if kind == "seg":
        made = _segmentation(sources, maker, mask, segment or [], axes)
    elif kind == "sr":
        made = _report(sources, maker, scores, text)
    else:
        made = _capture(sources, maker, picture)
    write_object(made, out)
    # Where an image says less than the object has to: what stands in for it.
    if note := made.get("ImageComments"):
        typer.echo(note)
    typer.echo(f"{out}: {made.SOPClassUID.name}, unverified. Store it: medfed data pacs send")


def _segmentation(
    sources: "Sources",
    maker: "Maker",
    mask: Path | None,
    segments: list[str],
    axes: Literal["slices", "ras"],
) -> "Dataset":
    from medfed.client.data.results.files import read_mask
    from medfed.client.data.results.segmentation import segmentation_object
    from medfed.common.errors import DataError

    if mask is None or not segments:
        raise DataError("A segmentation needs --mask FILE and --segment NAME.")
    return segmentation_object(sources, read_mask(mask, sources, axes), segments, maker)


def _report(
    sources: "Sources", maker: "Maker", scores: Path | None, text: Path | None
) -> "Dataset":
    from medfed.client.data.results.files import read_scores, read_text
    from medfed.client.data.results.reports import probability_report, text_report
    from medfed.common.errors import DataError

    if scores is not None and text is None:
        return probability_report(sources, read_scores(scores), maker)
    if text is None or scores is not None:
        raise DataError("A structured report needs one of --scores FILE and --text FILE.")
    return text_report(sources, read_text(text), maker)


def _capture(sources: "Sources", maker: "Maker", picture: Path | None) -> "Dataset":
    from medfed.client.data.results.capture import capture_object
    from medfed.client.data.results.files import read_picture
    from medfed.common.errors import DataError

    if picture is None:
        raise DataError("A secondary capture needs --picture FILE.")
    return capture_object(sources, read_picture(picture), maker)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(result)
