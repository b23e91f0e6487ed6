"""What the attacks on updates came to: in words, a table, and the reconstructions in rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from medfed.common.study import StudyConfig
from medfed.simulations.auditing.attacks.inversion import psnr, ssim
from medfed.simulations.auditing.attacks.rates import Interval, allowed_identifications
from medfed.simulations.auditing.findings import Finding, Status, Table
from medfed.simulations.reporting.drawing import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "reconstruction"


@dataclass(frozen=True)
class Picture:
    """One patient's image and what was made of the updates.

    Attributes:
        truth: The image, [C, *S] in 0..1.
        plain: From its update without privacy.
        private: From its update as the study has it; None where the study adds no noise at sites.
        control: From another patient's update without privacy.
    """

    truth: Tensor
    plain: Tensor
    private: Tensor | None
    control: Tensor


def plain_finding(share: Interval, study: StudyConfig) -> Finding:
    """Say whether updates without privacy name their patient."""
    works = share.value == 1.0
    detail = (
        f"Without privacy the update of one image names its patient in {share.value:.0%} of cases. "
    )
    if study.privacy.at_sites:
        detail += "This is the proof that the attack works; it is not what the study sends."
    elif study.secure_aggregation.enabled:
        detail += "Sites add no noise; secure aggregation keeps single updates from the server."
    else:
        detail += "Such updates leave the sites as they are: whoever sees them can do the same."
    status = Status.NOTE if works and not study.privacy.at_sites else Status.PASS
    return Finding(
        NAME,
        "identification without privacy",
        status if works else Status.NOTE,
        detail if works else f"{detail} The attack is weak here, so a low result proves little.",
        {"share": share.value, "low": share.low, "high": share.high},
    )


def private_finding(share: Interval, candidates: int, study: StudyConfig) -> Finding:
    """Say whether updates as the study sends them do, and what the noise allows."""
    noise = study.privacy.noise_multiplier
    allowed = allowed_identifications(candidates, noise)
    chance = 1 / candidates
    failed = share.low > allowed
    verdict = (
        "That is more than the noise allows: the trainer clips or adds noise other than it states."
        if failed
        else "That is chance."
        if share.holds(chance)
        else "That is above chance and within what the noise allows."
    )
    return Finding(
        NAME,
        "identification under the study's privacy",
        Status.FAIL if failed else Status.PASS,
        f"Of {candidates} candidates the attacker names the right one in {share.value:.0%} of "
        f"updates (95 % interval {share.low:.0%} to {share.high:.0%}); chance is {chance:.0%}, and "
        f"one step at noise multiplier {noise:g} allows any attacker at most {allowed:.0%}. "
        + verdict,
        {
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "chance": chance,
            "allowed": allowed,
            "candidates": candidates,
        },
    )


def picture_finding(pictures: Sequence[Picture], study: StudyConfig, used: StudyConfig) -> Finding:
    """Say how near the reconstructions come to the images."""
    numbers = {f"{which}_{unit}": value for which, unit, value in _means(pictures)}
    detail = (
        f"Inverting the update of one image: {numbers['plain_psnr_db']:.1f} dB, structural "
        f"similarity {numbers['plain_ssim']:.2f} without privacy"
    )
    if "private_ssim" in numbers:
        detail += (
            f"; {numbers['private_psnr_db']:.1f} dB and {numbers['private_ssim']:.2f} under the "
            "study's privacy"
        )
    detail += (
        f"; the picture made of another patient's update comes to {numbers['control_psnr_db']:.1f} "
        f"dB and {numbers['control_ssim']:.2f}."
    )
    if used is not study:
        detail += (
            f" Images were reduced from {study.data.image_size} to {used.data.image_size} pixels a "
            "side for the pictures only: at full size an inversion takes too long for an audit."
        )
    return Finding(NAME, "gradient inversion", Status.NOTE, detail, numbers)


def _means(pictures: Sequence[Picture]) -> list[tuple[str, str, float]]:
    means = []
    for which in ("plain", "private", "control"):
        pairs = [(getattr(one, which), one.truth) for one in pictures]
        if any(image is None for image, _ in pairs):
            continue
        for unit, measure in (("psnr_db", psnr), ("ssim", ssim)):
            means.append((which, unit, float(np.mean([measure(*pair) for pair in pairs]))))
    return means


def picture_table(pictures: Sequence[Picture]) -> Table:
    """Return how near each reconstruction comes."""
    rows = []
    for number, one in enumerate(pictures, start=1):
        for name, image in (
            ("its own update, without privacy", one.plain),
            ("its own update, as the study sends it", one.private),
            ("another patient's update, without privacy", one.control),
        ):
            if image is not None:
                rows.append(
                    (
                        number,
                        name,
                        round(psnr(image, one.truth), 1),
                        round(ssim(image, one.truth), 2),
                    )
                )
    columns = ("Image", "Reconstructed from", "PSNR, dB", "SSIM")
    return Table("Reconstruction from the update of one image", columns, tuple(rows))


def caption(pictures: Sequence[Picture]) -> str:
    """Return what the columns of the picture are."""
    middle = "" if pictures[0].private is None else " from its update as the study sends it,"
    return (
        "Each row one image that was trained on: the image, what its update gives away without "
        f"privacy,{middle} and the control, made of another patient's update."
    )


def patient_data() -> Finding:
    """Warn that the pictures are of real patients."""
    return Finding(
        NAME,
        "patient data on this page",
        Status.NOTE,
        "The pictures show real patients' images. This page must not leave the site.",
    )


def picture_figure(rows: Sequence[Picture]) -> bytes:
    """Return the rows side by side as a PNG."""
    drawing = draw("reconstruction", "Reconstructions from updates.", lambda: _plot(rows))
    assert drawing is not None
    return drawing.png


def _plot(rows: Sequence[Picture]) -> "Figure":
    from matplotlib.figure import Figure

    titles = ["Original", "Without privacy", "As the study sends it", "Control"]
    table = [[row.truth, row.plain, row.private, row.control] for row in rows]
    if rows[0].private is None:
        titles, table = [*titles[:2], titles[3]], [[*line[:2], line[3]] for line in table]
    figure = Figure(figsize=(1.9 * len(titles), 2.0 * len(rows) + 0.2))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, cells in zip(table, axes, strict=True):
        for title, image, cell in zip(titles, line, cells, strict=True):
            assert image is not None
            cell.imshow(shown(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_axis_off()
            if line is table[0]:
                cell.set_title(title)
    return figure


def shown(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return an image [C, *S] as it is drawn: of a volume the middle slice, of views the first.

    [H, W] or, of colour images, [H, W, 3].
    """
    pixels = image.numpy()
    if pixels.ndim == 4:
        pixels = pixels[..., pixels.shape[-1] // 2]
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
