"""Example images of a run folder: held-out images with the final model's prediction."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medfed.common.errors import RunError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Example:
    """One held-out image.

    Attributes:
        image: The PNG's bytes.
        site: Whose held-out image it is.
        truth: Its classes.
        probabilities: The model's, by class, 0..1.
        correct: Whether the prediction is the truth.
    """

    image: bytes
    site: str
    truth: tuple[str, ...]
    probabilities: Mapping[str, float]
    correct: bool

    @property
    def data_uri(self) -> str:
        """The image inside a link, so that the page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.image).decode()

    def predicted(self, mode: Literal["multiclass", "multilabel"]) -> tuple[str, ...]:
        """The most likely class, or every class at 0.5 or above (multilabel)."""
        if mode == "multilabel":
            return tuple(name for name, value in self.probabilities.items() if value >= 0.5)
        return (max(self.probabilities, key=lambda name: self.probabilities[name]),)

    def most_likely(self, number: int) -> tuple[tuple[str, float], ...]:
        """The `number` most likely classes with their probabilities, highest first."""
        ranked = sorted(self.probabilities.items(), key=lambda pair: -pair[1])
        return tuple(ranked[:number])


def read_examples(folder: Path) -> tuple[Example, ...]:
    """Read `examples.json` and the images beside it; nothing if the run has none.

    Raises:
        RunError: A damaged table, or an image that is missing, no PNG or outside the folder.
    """
    path = folder / "examples.json"
    if not path.exists():
        return ()
    try:
        table: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_read_example(folder, row) for row in table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {type(error).__name__} {error}. "
            "Delete the examples folder to report without examples."
        ) from None


def _read_example(folder: Path, row: Mapping[str, Any]) -> Example:
    name = str(row["image"])
    path = folder / name
    # A name like ../../x would put any file of this machine into a page that is passed around.
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise ValueError(f"expected the image {name!r} beside examples.json")
    image = path.read_bytes()
    if not image.startswith(_PNG_SIGNATURE):
        raise ValueError(f"{name!r} is not a PNG")
    probabilities = {str(key): float(value) for key, value in row["probabilities"].items()}
    if not probabilities:
        raise ValueError(f"{name!r} has no probabilities")
    return Example(
        image=image,
        site=str(row["site"]),
        truth=tuple(str(label) for label in row["truth"]),
        probabilities=probabilities,
        correct=bool(row["correct"]),
    )
