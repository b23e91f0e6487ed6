"""Fills a page's template. Names of sites and classes come from files: everything is escaped."""

from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent


def render(template: str, title: str, **values: Any) -> str:
    """Return the page `template` makes of `values`: one self-contained HTML document."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    # Our own style sheet: the one text here that is not data.
    style = Markup(css)  # noqa: S704
    return environment.get_template(template).render(title=title, css=style, **values)
