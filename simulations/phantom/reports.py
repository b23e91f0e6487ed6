"""Report text from findings. Every site has its own wording; none says more than the findings do.

A report has one passage for each thing a reader looks for, abnormal or normal, in a fixed order.
"""

from dataclasses import dataclass

from medfed.simulations.phantom.findings import (
    FIELD_OF_VIEW_MM,
    THORAX_HALF_WIDTH,
    Finding,
    Modality,
)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How one site's radiologists write.

    Templates may use {side}, {Side}, {zone}, {size_mm} (nodule), {amount} (effusion),
    {ratio} (cardiothoracic, per cent) and {extent_mm} (consolidation).
    """

    opening: dict[Modality, str]
    nodule: str
    effusion: str
    cardiomegaly: str
    consolidation: str
    clear_lungs: str
    clear_pleura: str
    clear_heart: str


WORDINGS: tuple[Wording, ...] = (
    Wording(
        opening={"xray": "PA chest radiograph.", "ct": "Axial chest CT."},
        nodule="There is a {size_mm} mm nodule in the {side} {zone} zone.",
        effusion="There is a {amount} {side} pleural effusion.",
        cardiomegaly="The heart is enlarged, with a cardiothoracic ratio of {ratio}%.",
        consolidation="There is consolidation of {extent_mm} mm in the {side} {zone} zone.",
        clear_lungs="The lungs are clear.",
        clear_pleura="No pleural effusion.",
        clear_heart="The heart size is normal.",
    ),
    Wording(
        opening={"xray": "CHEST, FRONTAL VIEW.", "ct": "CT THORAX."},
        nodule="{Side} {zone} zone nodule, {size_mm} mm.",
        effusion="{Side} effusion, {amount}.",
        cardiomegaly="Cardiomegaly, CTR {ratio}%.",
        consolidation="{Side} {zone} zone consolidation, {extent_mm} mm.",
        clear_lungs="No focal lung lesion.",
        clear_pleura="Pleural spaces clear.",
        clear_heart="Heart not enlarged.",
    ),
    Wording(
        opening={"xray": "Findings on chest X-ray:", "ct": "Findings on chest CT:"},
        nodule="Lungs: rounded opacity measuring {size_mm} mm, {side} lung, {zone} zone.",
        effusion="Pleura: {amount} effusion on the {side}.",
        cardiomegaly="Heart: enlarged cardiac silhouette (cardiothoracic ratio {ratio}%).",
        consolidation="Lungs: airspace consolidation, {side} lung, {zone} zone, {extent_mm} mm.",
        clear_lungs="Lungs: no focal opacity.",
        clear_pleura="Pleura: no effusion.",
        clear_heart="Heart: normal size.",
    ),
    Wording(
        opening={
            "xray": "The chest was examined in one projection.",
            "ct": "One transverse section of the chest was reviewed.",
        },
        nodule="A solitary nodule of about {size_mm} mm is projected over the {side} {zone} zone.",
        effusion="Fluid of {amount} volume is seen in the {side} pleural space.",
        cardiomegaly="The cardiac shadow is widened to {ratio}% of the thoracic diameter.",
        consolidation="An airless area of about {extent_mm} mm occupies the {side} {zone} zone.",
        clear_lungs="Both lungs are normally aerated without focal change.",
        clear_pleura="Neither pleural space contains fluid.",
        clear_heart="The cardiac shadow is of normal width.",
    ),
    Wording(
        opening={"xray": "CXR:", "ct": "CT:"},
        nodule="nodule {size_mm} mm {side} {zone} zone;",
        effusion="{amount} {side} effusion;",
        cardiomegaly="enlarged heart, CTR {ratio}%;",
        consolidation="consolidation {extent_mm} mm {side} {zone} zone;",
        clear_lungs="lungs clear;",
        clear_pleura="no effusion;",
        clear_heart="heart normal size;",
    ),
)


def write_report(findings: tuple[Finding, ...], *, modality: Modality, style: int) -> str:
    """Return the report of one image.

    Args:
        findings: As they are on this image.
        modality: Gives the opening, and whether the heart's size is judged (radiographs only).
        style: Index into `WORDINGS`.
    """
    wording = WORDINGS[style]
    by_kind = {finding.kind: finding for finding in findings}
    passages = [wording.opening[modality]]
    lung_findings = [by_kind[kind] for kind in ("nodule", "consolidation") if kind in by_kind]
    passages += [_describe(finding, modality, wording) for finding in lung_findings]
    if not lung_findings:
        passages.append(wording.clear_lungs)
    effusion = by_kind.get("effusion")
    passages.append(_describe(effusion, modality, wording) if effusion else wording.clear_pleura)
    if modality == "xray":
        heart = by_kind.get("cardiomegaly")
        passages.append(_describe(heart, modality, wording) if heart else wording.clear_heart)
    text = " ".join(passages)
    return text[:-1] + "." if text.endswith(";") else text


def _describe(finding: Finding, modality: Modality, wording: Wording) -> str:
    template = {
        "nodule": wording.nodule,
        "effusion": wording.effusion,
        "cardiomegaly": wording.cardiomegaly,
        "consolidation": wording.consolidation,
    }[finding.kind]
    diameter_mm = round(2 * finding.extent * FIELD_OF_VIEW_MM[modality])
    return template.format(
        side=finding.side,
        Side=finding.side.capitalize(),
        zone=_zone(finding.centre[1], modality),
        size_mm=diameter_mm,
        extent_mm=diameter_mm,
        amount=_amount(finding.extent, modality),
        ratio=round(100 * finding.extent / THORAX_HALF_WIDTH),
    )


def _zone(y: float, modality: Modality) -> str:
    names = ("upper", "middle", "lower") if modality == "xray" else ("anterior", "middle", "dorsal")
    low, high = (0.38, 0.54) if modality == "xray" else (0.42, 0.54)
    return names[0] if y < low else names[1] if y < high else names[2]


def _amount(extent: float, modality: Modality) -> str:
    small, large = (0.11, 0.19) if modality == "xray" else (0.08, 0.12)
    return "small" if extent < small else "moderate" if extent < large else "large"
