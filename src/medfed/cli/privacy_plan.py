"""Prints what `medfed privacy plan` found out."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from medfed.client.planning import DataSetPlan
from medfed.common.study import StudyConfig


def print_plans(study: StudyConfig, plans: Sequence[DataSetPlan], *, as_json: bool) -> None:
    """Print one table a data set, or all as JSON, in which an infinite epsilon is null."""
    if as_json:
        data_sets = [_to_json(plan) for plan in plans]
        table = {"study": study.study.name, "digest": study.digest(), "data_sets": data_sets}
        typer.echo(json.dumps(table, allow_nan=False))
        return
    console = Console(highlight=False)
    for plan in plans:
        table_ = Table(title=f"{study.study.name} at {plan.site}", show_header=False)
        table_.add_column(style="dim")
        for name, value in _rows(plan):
            table_.add_row(name, value)
        console.print(table_)
        console.print(_verdict(plan), style="red" if plan.refusal else None, markup=False)


def _to_json(plan: DataSetPlan) -> dict[str, Any]:
    table = {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in asdict(plan).items()
    }
    if plan.refusal is not None:
        reason, detail = plan.refusal
        table["refusal"] = {"reason": reason.value, "detail": detail}
    return table


def _rows(plan: DataSetPlan) -> list[tuple[str, str]]:
    return [
        ("Unit of privacy", plan.unit),
        ("Budget", f"epsilon {plan.max_epsilon:g} at delta {plan.target_delta:g}"),
        ("Noise added by", _noise(plan)),
        ("Spent already", _spent(plan)),
        ("This study alone", f"{_show(plan.alone)} ({plan.rounds} rounds)"),
        ("All of it together", _show(plan.after)),
        ("Left when it ends or is stopped", _show(plan.left)),
    ]


def _noise(plan: DataSetPlan) -> str:
    if plan.noise == "none":
        others = "the server: it is taken at its word"
        return others if plan.unit == "site" else "nobody"
    if plan.noise == "seeded":
        return "this site, from the study's seed: not private, for simulations only"
    if plan.unit == "site":
        return "all sites together, each its share"
    return "this site, from the operating system's generator"


def _spent(plan: DataSetPlan) -> str:
    spent = f"{_show(plan.spent)} ({plan.entries} ledger entries)"
    return spent + ", and releases without privacy" if plan.without_privacy else spent


def _show(epsilon: float) -> str:
    return "no epsilon" if math.isinf(epsilon) else f"{epsilon:.3f}"


def _verdict(plan: DataSetPlan) -> str:
    if plan.refusal is not None:
        reason, detail = plan.refusal
        return f"This site would refuse at once ({reason.value}): {detail}"
    if plan.affordable_rounds is None:
        return "No epsilon bounds what this study costs: it trains without privacy."
    if plan.stops_at is None:
        return f"The budget lasts for all {plan.rounds} rounds."
    if plan.stops_at == 0:
        return "The budget does not even allow what is asked before round 1: no round would run."
    return (
        f"The budget refuses round {plan.stops_at} of {plan.rounds}: "
        f"{plan.affordable_rounds} rounds would run here, then the federation goes on without "
        "this site."
    )
