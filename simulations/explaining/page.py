"""Writes an explanation: one self-contained page, its pictures as PNG, and its figures as JSON."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medfed.common.errors import RunError
from medfed.common.files import write_atomically, write_json
from medfed.simulations.explaining.load import Examination, Trained
from medfed.simulations.explaining.pictures import Picture, scale_colours
from medfed.simulations.reporting.rendering import render
from medfed.simulations.reporting.tables import Table

PAGE, FACTS = "explanation.html", "explanation.json"


@dataclass(frozen=True)
class Plate:
    """A picture with what it shows.

    Attributes:
        name: File name without ending.
        picture: RGB.
        title: A few words.
        caption: What to see, in a sentence or two.
    """

    name: str
    picture: Picture
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Content:
    """What the page of one task says.

    Attributes:
        title: What the pictures are about.
        headline: The prediction in a line.
        plates: Large pictures.
        scale: What the colour scale goes from and to; empty where no map is shown.
        shows: What the pictures show, a sentence each.
        hides: What they do not show, a sentence each.
        table: The prediction in figures.
        text: A written report.
        words: A small picture a word.
        legend: Colour and name of each contour.
        facts: The same for programs, ready for JSON.
    """

    title: str
    headline: str
    plates: tuple[Plate, ...]
    scale: tuple[str, str] | tuple[()]
    shows: tuple[str, ...]
    hides: tuple[str, ...]
    facts: Mapping[str, Any]
    table: Table | None = None
    text: str = ""
    words: tuple[Plate, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()


def write_explanation(
    trained: Trained, examination: Examination, content: Content, out: Path
) -> Path:
    """Write `explanation.html`, `explanation.json` and the pictures into `out`.

    The page opens offline. The same model and files give the same bytes.

    Returns:
        Path of the page.

    Raises:
        RunError: A folder that cannot be written to.
    """
    plates = [*content.plates, *content.words]
    files = {plate.name: _png(plate.picture) for plate in plates}
    provenance = _provenance(trained, examination)
    page = render(
        "explanation.html.j2",
        f"{trained.study.study.name} · explanation · medfed",
        content=content,
        run=trained.run,
        site=trained.site,
        grey_levels=examination.grey_levels,
        study=trained.study,
        images={name: _data_uri(png) for name, png in files.items()},
        scale=scale_colours(),
        provenance=provenance,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, png in files.items():
            write_atomically(out / f"{name}.png", png)
        write_json(out / FACTS, {**_facts(trained, examination), **content.facts})
        write_atomically(out / PAGE, page.encode())
    except OSError as error:
        raise RunError(
            f"The explanation cannot be written to {out} ({error.strerror}). "
            "Name another folder with --out."
        ) from None
    return out / PAGE


def _facts(trained: Trained, examination: Examination) -> dict[str, Any]:
    return {
        "run": trained.run,
        "study": trained.study.digest(),
        "task": trained.study.task.type,
        "model": trained.study.model.name,
        "site": trained.site,
        "alpha": trained.alpha,
        "weights_sha256": trained.weights_sha256,
        "images_sha256": dict(examination.sha256),
        "columns": dict(examination.columns),
        "shape": list(examination.pixels.shape),
        "grey_levels": examination.grey_levels,
    }


def _provenance(trained: Trained, examination: Examination) -> list[tuple[str, str]]:
    shape = " x ".join(str(side) for side in examination.pixels.shape[1:])
    unit = "pixels" if examination.pixels.ndim == 3 else "voxels"
    rows = [
        ("Run", trained.run),
        ("Study (SHA-256)", trained.study.digest()),
        ("Model", trained.study.model.name),
        ("Whose", _whose(trained)),
        ("Weights (SHA-256)", trained.weights_sha256),
        *((f"File, {view} (SHA-256)", sha) for view, sha in examination.sha256.items()),
        ("As the model sees it", f"{shape} {unit}"),
    ]
    if examination.grey_levels:
        rows.append(("Grey levels", examination.grey_levels))
    rows += [(f"Column {name}", value) for name, value in examination.columns.items()]
    missing = [
        view
        for view, present in zip(examination.views, examination.present, strict=True)
        if not present
    ]
    return rows + ([("Views missing", ", ".join(missing))] if missing else [])


def _whose(trained: Trained) -> str:
    if not trained.site:
        return "global"
    share = "" if trained.alpha is None else f", alpha {trained.alpha:.3f}: the rest is global"
    return f"site {trained.site}'s own{share}"


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
