"""What a membership attack came to, in words, tables and a ROC with logarithmic axes."""

from typing import TYPE_CHECKING

import numpy as np

from medfed.simulations.auditing.attacks.rates import Interval, allowed_tpr, refutes, roc
from medfed.simulations.auditing.findings import Figure, Finding, PartResult, Status, Table
from medfed.simulations.reporting.drawing import INK, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

    from medfed.simulations.auditing.membership import MembershipResult

_NAME = "membership"
_ATTACKS = {"loss": "loss threshold", "lira": "LiRA", "rmia": "RMIA"}


def describe(result: "MembershipResult") -> PartResult:
    """Return the findings, the table and the ROC of an attack."""
    findings = (
        _without_privacy(result),
        _control(result),
        _on_the_model(result),
        _claim(result),
        _held_out(result),
    )
    drawing = draw("membership_roc", "ROC of the membership attack.", lambda: _plot(result))
    assert drawing is not None
    caption = (
        f"ROC of {_ATTACKS[result.attack]} on the published model, both axes logarithmic: on the "
        "left are the attacks that accuse few of the innocent."
    )
    return PartResult(_NAME, findings, (_table(result),), (Figure(caption, drawing.png),))


def _without_privacy(result: "MembershipResult") -> Finding:
    area, (count, passes, cut) = result.without_privacy, result.references
    works = area.low > 0.5
    slower = "" if cut == 1 else f", at {cut:g} of its learning rate at the least"
    detail = (
        f"{_ATTACKS[result.attack]} on {count} reference models trained by the study's recipe but "
        f"in one place and without privacy ({passes:.3g} passes over half of the {result.unit}s"
        f"{slower}) has area {_said(area)}. "
    )
    detail += (
        "The attack works."
        if works
        else "It has no power even there: the recipe hardly memorises, and a low result below "
        "proves nothing."
    )
    status = Status.PASS if works else Status.NOTE
    return Finding(_NAME, "attack without privacy", status, detail, _numbers("auc", area))


def _control(result: "MembershipResult") -> Finding:
    at_chance = result.control.holds(0.5)
    detail = (
        f"{result.unit.capitalize()}s that a reference model was not trained on, those of the "
        f"study's training side against its held-out ones: area {_said(result.control)}. "
    )
    detail += (
        "At chance, as it must be."
        if at_chance
        else "The two sides differ by more than membership, so the area below is off by as much."
    )
    status = Status.PASS if at_chance else Status.NOTE
    return Finding(
        _NAME, "control: none was in training", status, detail, _numbers("auc", result.control)
    )


def _on_the_model(result: "MembershipResult") -> Finding:
    area = result.area
    point = next(point for point in result.points if point.target_fpr == 0.01)
    rarest = result.points[0]
    detail = (
        f"On the published model: area {_said(area)}; of the {result.unit}s that were trained on, "
        f"{point.tpr.value:.1%} ({point.tpr.low:.1%} to {point.tpr.high:.1%}) are found at 1 % "
        f"false positives, {rarest.tpr.value:.1%} ({rarest.tpr.low:.1%} to {rarest.tpr.high:.1%}) "
        f"at 0.1 %. Advantage {result.advantage:.3f}; by chance alone it stays below "
        f"{result.chance_advantage:.3f} in 95 % of cases. "
    )
    if area.low > 0.5:
        detail += "The attack succeeds" + (
            ", as is to be expected without privacy." if result.claim is None else "."
        )
    else:
        detail += "The attack is at chance."
    status = Status.PASS if area.low <= 0.5 and result.claim is not None else Status.NOTE
    numbers = _numbers("auc", area) | {
        "advantage": result.advantage,
        "chance_advantage": result.chance_advantage,
    }
    for one, name in ((point, "tpr_at_1_percent"), (rarest, "tpr_at_0.1_percent")):
        numbers |= _numbers(name, one.tpr)
    return Finding(_NAME, "attack on the published model", status, detail, numbers)


def _claim(result: "MembershipResult") -> Finding:
    check = "claimed epsilon against the attack"
    if result.claim is None:
        detail = f"The run claims no epsilon for one {result.unit}, so no attack can contradict it."
        return Finding(_NAME, check, Status.NOTE, detail)
    epsilon, delta = result.claim.epsilon, result.claim.delta
    broken = [point for point in result.strict_points if refutes(point, epsilon, delta)]
    allowed = allowed_tpr(0.01, epsilon, delta)
    said = f"Epsilon {epsilon:.3g} at delta {delta:g} allows at most {allowed:.1%} at 1 % false "
    said += "positives. "
    if broken:
        point = broken[0]
        said += (
            f"At {point.target_fpr:.1%} the attack finds at least {point.tpr.low:.1%} where "
            f"{allowed_tpr(point.fpr.high, epsilon, delta):.1%} are allowed: the claim is wrong."
        )
    else:
        said += "The attack stays within it; that it finds no more is no proof of the claim."
    numbers = {"epsilon": epsilon, "delta": delta, "allowed_tpr_at_1_percent": allowed}
    return Finding(_NAME, check, Status.FAIL if broken else Status.PASS, said, numbers)


def _held_out(result: "MembershipResult") -> Finding:
    count = len(result.held_out)
    detail = f"{len(result.members)} {result.unit}s were trained on, {count} held out. "
    if count < 1000:
        detail += (
            f"Fewer than 1,000 held out: the smallest rate that can be seen is {1 / count:.2%}, so "
            "the figure at 0.1 % is that without any false positive, whose true rate may be up to "
            f"{result.points[0].fpr.high:.2%}."
        )
    numbers = {"members": len(result.members), "held_out": count}
    return Finding(_NAME, "number of units", Status.NOTE, detail, numbers)


def _table(result: "MembershipResult") -> Table:
    rows = []
    for point in result.points:
        allowed = (
            None
            if result.claim is None
            else round(allowed_tpr(point.fpr.value, result.claim.epsilon, result.claim.delta), 4)
        )
        rows.append(
            (
                f"{point.target_fpr:.1%}",
                round(point.fpr.value, 4),
                round(point.tpr.value, 4),
                f"{point.tpr.low:.4f} to {point.tpr.high:.4f}",
                allowed,
            )
        )
    columns = ("False positives, at most", "FPR", "TPR", "95 % interval", "TPR allowed")
    title = f"{_ATTACKS[result.attack]} on the published model"
    return Table(title, columns, tuple(rows))


def _plot(result: "MembershipResult") -> "Plot":
    figure, axes = new_figure(4.6, 4.2)
    fpr, tpr = roc(result.members, result.held_out)
    lowest = 0.5 / max(len(result.members), len(result.held_out))
    line = np.geomspace(lowest, 1, 200)
    axes.plot(line, line, color=INK["grey"], linestyle=":", label="chance")
    if result.claim is not None:
        allowed = [allowed_tpr(x, result.claim.epsilon, result.claim.delta) for x in line]
        label = f"allowed by epsilon {result.claim.epsilon:.3g}"
        axes.plot(line, allowed, color=INK["vermillion"], linestyle="--", label=label)
    # A rate of 0 has no place on these axes; it is drawn at their edge.
    shown = np.maximum(fpr, lowest), np.maximum(tpr, lowest)
    axes.step(*shown, where="post", color=INK["blue"], label=_ATTACKS[result.attack])
    for point in result.points:
        x = max(point.fpr.value, lowest)
        ends = max(point.tpr.low, lowest), max(point.tpr.high, lowest)
        axes.plot([x, x], ends, color=INK["blue"], linewidth=4, alpha=0.3)
    axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.1))
    axes.set(xlabel="False positive rate", ylabel="True positive rate")
    for axis in (axes.xaxis, axes.yaxis):
        # The report's figures show text as it is, and the usual labels are formulas.
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    axes.set_title(f"Area {_said(result.area)}")
    axes.legend(loc="lower right")
    plot: Plot = figure
    return plot


def _said(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _numbers(name: str, interval: Interval) -> dict[str, float | int | str | None]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
