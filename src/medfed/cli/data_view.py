"""`medfed data view`: a sheet of a store's images to look at before anybody trains on them."""

from pathlib import Path
from typing import Annotated

import typer


def view(
    store: Annotated[Path, typer.Argument(help="Prepared store.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("sheet.png"),
    patients: Annotated[int, typer.Option(min=1, max=400, help="How many to show.")] = 16,
    seed: Annotated[int, typer.Option(help="Other patients for another number.")] = 0,
    study: Annotated[
        Path | None,
        typer.Option(help="Study file: is the store for it, and which side is each image on?"),
    ] = None,
) -> None:
    """Write a picture of some patients' images with their labels and masks.

    It shows patients: it is for this hospital's own eyes.
    """
    from io import BytesIO

    from medfed.client.data.contact_sheet import contact_sheet
    from medfed.client.data.store import open_store
    from medfed.common.errors import DataError
    from medfed.common.files import write_secret

    opened = open_store(store)
    sides = _sides(store, study, len(opened)) if study is not None else None
    sheet = contact_sheet(opened, num_patients=patients, seed=seed, sides=sides)
    content = BytesIO()
    sheet.save(content, format="PNG")
    try:
        write_secret(out, content.getvalue())
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error.strerror}. Name another file with --out."
        ) from None
    typer.echo(f"{out}: {sheet.width} x {sheet.height} pixels. It shows patients: keep it here.")


def _sides(store: Path, study: Path, num_images: int) -> list[str]:
    from medfed.client.data.site_data import load_site_data
    from medfed.client.site import SiteConfig
    from medfed.common.study_file import load_study

    table = {"name": "view", "data": {"stores": [str(store.resolve())]}}
    data = load_site_data(SiteConfig.model_validate(table), load_study(study))
    sides = [""] * num_images
    for side, images in (("train", data.train), ("test", data.test)):
        for row in images.row_index.tolist():
            sides[row] = side
    return sides


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(view)
