"""The audit as one page that an auditor reads without the source, and opens offline."""

import base64
import json
from pathlib import Path
from typing import Any

from medfed.common.errors import RunError
from medfed.common.files import write_atomically
from medfed.simulations.auditing.audit import Audit
from medfed.simulations.auditing.statements import guarantee, not_covered, recomputing, terms
from medfed.simulations.reporting.tables import ABSENT

PAGE, FACTS = "audit.html", "audit.json"
_HERE = Path(__file__).parent
_TITLES = {
    "ledger": "Ledger: what was charged",
    "mechanism": "Mechanism: does this installation do what is charged?",
    "membership": "Membership: can one tell who was in the training?",
    "reconstruction": "Reconstruction: can one see a patient's images in an update?",
}
_MARKS = {"pass": "passed", "fail": "FAILED", "note": "note"}


def write_page(audit: Audit, out: Path) -> Path:
    """Write audit.html and audit.json into `out` and return the page's path.

    Raises:
        RunError: The folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(audit.to_json(), indent=1) + "\n"
        write_atomically(out / FACTS, text.encode())
        write_atomically(out / PAGE, _render(audit).encode())
    except OSError as error:
        raise RunError(
            f"The audit cannot be written to {out} ({error.strerror}). Name a folder with --out."
        ) from None
    return out / PAGE


def _render(audit: Audit) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    reporting = _HERE.parent / "reporting"
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader([_HERE, reporting]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (reporting / "page.css").read_text(encoding="utf-8")
    return environment.get_template("audit.html.j2").render(
        title=f"{audit.target} · audit · medfed",
        css=Markup(css),  # noqa: S704 - our own style sheet
        audit=audit,
        parts=[_part(part) for part in audit.parts],
        guarantee=guarantee(audit),
        not_covered=not_covered(audit),
        terms=terms(audit),
        recomputing=recomputing(audit),
    )


def _part(part: Any) -> dict[str, Any]:
    return {
        "name": part.name,
        "title": _TITLES[part.name],
        "skipped": part.skipped,
        "passed": part.passed,
        "findings": [
            {"check": f.check, "mark": _MARKS[f.status.value], "detail": f.detail}
            # What failed comes first: nobody should have to look for it.
            for f in sorted(part.findings, key=lambda f: ("fail", "pass", "note").index(f.status))
        ],
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [
                    [ABSENT if cell is None else _cell(cell) for cell in r] for r in table.rows
                ],
            }
            for table in part.tables
        ],
        "figures": [
            {
                "caption": figure.caption,
                "data": "data:image/png;base64," + base64.b64encode(figure.png).decode(),
            }
            for figure in part.figures
        ],
    }


def _cell(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
