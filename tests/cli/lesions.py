"""A small data set of invented lesions in the layout of HAM10000, and a study of it."""

import sys
from pathlib import Path

import numpy as np
import typer
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "client" / "agent"))

from trial_hospital import make_site, make_store

__all__ = ["command", "make_site", "make_store", "run", "write_lesions", "write_study"]

_STUDY = """\
[study]
name = "lesions"
[task]
classes = ["mel", "nv"]
[data]
image_size = 32
channels = 3
[training]
local_steps = 2
batch_size = 4
[privacy]
unit = "none"
[simulation]
dataset = "ham10000"
"""
_HEAD = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"


def write_study(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(_STUDY)
    return folder / "study.toml"


def write_lesions(folder: Path, number: int = 60) -> Path:
    """Write `number` images of half as many lesions; a third of them are melanomas."""
    (folder / "images").mkdir(parents=True)
    lines = [_HEAD]
    for n in range(number):
        label = "nv" if n // 2 % 3 else "mel"
        lines.append(f"Doe_Jane_{n // 2:03d},ISIC_{n:04d},{label},histo,50,female,back,clinic")
        noise = np.random.default_rng(n).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"ISIC_{n:04d}.jpg")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def command(module: object) -> typer.Typer:
    """Return an app with the module's command and another, so that its name is needed."""
    app = typer.Typer()

    @app.callback()
    def _root() -> None:
        """Make the command one of several."""

    module.add_to(app)  # type: ignore[attr-defined]
    return app


def run(app: typer.Typer, *arguments: object, code: int = 0) -> str:
    """Return what was printed; an error that medfed raises on purpose comes through."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout
