"""Example images of a run folder: held-out images with the final model's answer.

`medfed.simulations.examples` writes them.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from medfed.common.errors import RunError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STATES = ("found", "missed", "invented")


@dataclass(frozen=True)
class Example:
    """One held-out image.

    Attributes:
        image: The PNG's bytes.
        site: Whose held-out image it is.
        note: Views and slice in words; empty if there is nothing to say.
    """

    image: bytes
    site: str
    note: str

    @property
    def data_uri(self) -> str:
        """The image inside a link, so that the page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.image).decode()


@dataclass(frozen=True)
class ClassificationExample(Example):
    """An image with its classes.

    Attributes:
        truth: Its classes.
        predicted: Those that the model names.
        probabilities: The model's, by class, 0..1.
        correct: Whether the prediction is the truth.
    """

    truth: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: Mapping[str, float]
    correct: bool

    def most_likely(self, number: int) -> tuple[tuple[str, float], ...]:
        """The `number` most likely classes with their probabilities, highest first."""
        ranked = sorted(self.probabilities.items(), key=lambda pair: -pair[1])
        return tuple(ranked[:number])


@dataclass(frozen=True)
class SegmentationExample(Example):
    """An image with outlines of truth and prediction.

    Attributes:
        dice: Of each structure; 1 where it is neither there nor found.
        present: Structures that the image holds.
        missed: Those of them of which nothing was found.
        false_alarms: Structures that were found and are not there.
    """

    dice: Mapping[str, float]
    present: tuple[str, ...]
    missed: tuple[str, ...]
    false_alarms: tuple[str, ...]

    @property
    def mean_dice(self) -> float:
        """Mean over the structures."""
        return fmean(self.dice.values())

    @property
    def correct(self) -> bool:
        """Whether just those structures were found that are there."""
        return not self.missed and not self.false_alarms


@dataclass(frozen=True)
class ReportExample(Example):
    """An image with its true report and the one that was written.

    Attributes:
        true: Sentences, each with the findings that it mentions.
        written: The same of what the model wrote.
        findings: found, missed or invented for each finding that either text mentions.
        rouge_l: How much of the wording agrees, 0..1.
    """

    true: tuple[tuple[str, tuple[str, ...]], ...]
    written: tuple[tuple[str, tuple[str, ...]], ...]
    findings: Mapping[str, str]
    rouge_l: float

    @property
    def correct(self) -> bool:
        """Whether just those findings were mentioned that the true report mentions."""
        return all(state == "found" for state in self.findings.values())


def read_examples(folder: Path, task: str) -> tuple[Example, ...]:
    """Read `examples.json` and the images beside it; nothing if the run has none.

    Raises:
        RunError: A damaged table, or an image that is missing, no PNG or outside the folder.
    """
    path = folder / "examples.json"
    if not path.exists():
        return ()
    try:
        table: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_READERS[task](_read_image(folder, row), row) for row in table)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged: {type(error).__name__} {error}. "
            "Delete the examples folder to report without examples."
        ) from None


def _read_image(folder: Path, row: Mapping[str, Any]) -> Example:
    name = str(row["image"])
    path = folder / name
    # A name like ../../x would put any file of this machine into a page that is passed around.
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise ValueError(f"expected the image {name!r} beside examples.json")
    image = path.read_bytes()
    if not image.startswith(_PNG_SIGNATURE):
        raise ValueError(f"{name!r} is not a PNG")
    return Example(image, str(row["site"]), str(row.get("note", "")))


def _classification(example: Example, row: Mapping[str, Any]) -> ClassificationExample:
    return ClassificationExample(
        *(example.image, example.site, example.note),
        truth=_names(row["truth"]),
        predicted=_names(row["predicted"]),
        probabilities=_shares(row["probabilities"]),
        correct=bool(row["correct"]),
    )


def _segmentation(example: Example, row: Mapping[str, Any]) -> SegmentationExample:
    return SegmentationExample(
        *(example.image, example.site, example.note),
        dice=_shares(row["dice"]),
        present=_names(row["present"]),
        missed=_names(row["missed"]),
        false_alarms=_names(row["false_alarms"]),
    )


def _report(example: Example, row: Mapping[str, Any]) -> ReportExample:
    findings = {str(name): str(state) for name, state in row["findings"].items()}
    if not set(findings.values()) <= set(_STATES):
        raise ValueError(f"expected findings to be {', '.join(_STATES)}")
    return ReportExample(
        *(example.image, example.site, example.note),
        true=_sentences(row["true"]),
        written=_sentences(row["written"]),
        findings=findings,
        rouge_l=float(row["rouge_l"]),
    )


_READERS: dict[str, Callable[[Example, Mapping[str, Any]], Example]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "report": _report,
}


def _names(values: list[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _shares(table: Mapping[str, Any]) -> dict[str, float]:
    if not table:
        raise ValueError("expected a number for each class, got none")
    return {str(name): float(value) for name, value in table.items()}


def _sentences(rows: list[Mapping[str, Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((str(row["text"]), _names(row["findings"])) for row in rows)
