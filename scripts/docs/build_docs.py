"""Builds the documentation as a folder of pages that open offline.

    python scripts/docs/build_docs.py OUT [--no-api]

    OUT/index.html, OUT/*.html   docs/, and what of the repository it links to
    OUT/reference/               every setting of every file, every command: made from the code
    OUT/api/                     docstrings, by pdoc

Ends with 1 and a list if a page links to what is not there.
"""

import argparse
import posixpath
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from docs_reference import reference_pages
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markdown_it import MarkdownIt
from markdown_it.token import Token

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
API = ("medfed.common", "medfed.client", "medfed.server", "medfed.simulations")
# Where pages outside docs/ go.
AROUND = "around"
_MENU = {
    "Hospitals": ("hospital", "data", "pacs", "tutorials/hospital"),
    "Researchers": ("research", "tutorials/research", "utility", "results", "benchmarks"),
    "Coordinators": ("coordinator",),
    "Auditors": ("auditing", "tutorials/auditor"),
    "Reference": (
        "reference/study",
        "reference/site",
        "reference/dataset",
        "reference/federation",
        "reference/commands",
        "api/index",
    ),
}


@dataclass(frozen=True)
class Page:
    """One page of the site: where it goes, and Markdown with links as in the repository.

    Attributes:
        place: Path in the site, without .html.
        source: Path in the repository that links are relative to.
        text: Markdown.
    """

    place: str
    source: str
    text: str


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-api", action="store_true", help="leave out the docstrings (minutes)")
    asked = parser.parse_args(arguments)
    broken = build(asked.out, () if asked.no_api else API)
    for line in broken:
        print(line, file=sys.stderr)
    print(f"{asked.out / 'index.html'}")
    return 1 if broken else 0


def build(out: Path, api: Sequence[str]) -> list[str]:
    """Write the site and return what is linked to and not there."""
    pages = [*found_pages(), *(Page(p, f"docs/{p}.md", t) for p, t in reference_pages().items())]
    places = {page.source: f"{page.place}.html" for page in pages}
    template = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(["j2"])
    ).get_template("page.html.j2")
    titles = {page.place: title_of(page.text) for page in pages}
    broken: list[str] = []
    anchors = {page.source: anchors_of(page.text) for page in pages}
    for page in pages:
        body = rendered(page, places, anchors, out, broken)
        path = out / f"{page.place}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * page.place.count("/")
        menu = {
            group: [(f"{up}{place}.html", titles.get(place, "Python API")) for place in shown]
            for group, places_of in _MENU.items()
            if (shown := [p for p in places_of if p in titles or (api and p.startswith("api/"))])
        }
        path.write_text(
            template.render(title=titles[page.place], body=body, menu=menu, up=up, here=page.place)
        )
    if api:
        write_api(out / "api", api)
    return broken


def found_pages() -> list[Page]:
    """Return docs/ and the Markdown beside it that a reader is led to."""
    pages = []
    for file in sorted((ROOT / "docs").rglob("*.md")):
        source = file.relative_to(ROOT).as_posix()
        place = source.removeprefix("docs/").removesuffix(".md")
        pages.append(Page("index" if place == "README" else place, source, file.read_text()))
    for source in ("README.md", "CHANGELOG.md", "examples/plugins/README.md"):
        place = f"{AROUND}/{source.removesuffix('.md')}"
        pages.append(Page(place, source, (ROOT / source).read_text()))
    return pages


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark", {"html": False}).enable("table").parse(text)


def title_of(text: str) -> str:
    """Return the first heading, without marks."""
    heading = re.search(r"^#\s+(.*)$", text, re.MULTILINE)
    return re.sub(r"[`*]", "", heading.group(1)) if heading else "medfed"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors_of(text: str) -> set[str]:
    tokens = parsed(text)
    return {slug(tokens[i + 1].content) for i, t in enumerate(tokens) if t.type == "heading_open"}


def rendered(
    page: Page,
    places: dict[str, str],
    anchors: dict[str, set[str]],
    out: Path,
    broken: list[str],
) -> str:
    """Return a page's HTML, its links led to the site; what they miss goes into `broken`."""
    tokens = parsed(page.text)
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrs["id"] = slug(tokens[index + 1].content)
        for child in token.children or ():
            key = {"link_open": "href", "image": "src"}.get(child.type)
            if key:
                link = str(child.attrs[key])
                try:
                    child.attrs[key] = led(link, page, places, anchors, out)
                except LookupError as error:
                    broken.append(f"{page.source}: {link}: {error.args[0]}")
    renderer = MarkdownIt("commonmark").enable("table").renderer
    html = renderer.render(tokens, MarkdownIt("commonmark").options, {})
    return html.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )


def led(
    link: str, page: Page, places: dict[str, str], anchors: dict[str, set[str]], out: Path
) -> str:
    """Return where a link of the repository leads in the site; a file that is no page is copied.

    Raises:
        LookupError: There is no such file, or no such heading in it.
    """
    if re.match(r"[a-z]+:", link):
        return link
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page.source), unquote(path)))
    target = target if path else page.source
    if anchor and target in anchors and anchor not in anchors[target]:
        raise LookupError(f"{target} has no heading #{anchor}")
    if target not in places:
        file = ROOT / target
        if target.startswith("..") or not file.is_file():
            raise LookupError(f"there is no file {target}")
        copied = out / AROUND / target
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    place = places.get(target, f"{AROUND}/{target}")
    start = posixpath.dirname(page.place) or "."
    return posixpath.relpath(place, start) + (f"#{anchor}" if anchor else "")


def write_api(out: Path, modules: Sequence[str]) -> None:
    import pdoc
    import pdoc.render

    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        # Types of other packages that pdoc cannot follow: they are shown by their names.
        warnings.simplefilter("ignore", UserWarning)
        pdoc.pdoc(*modules, output_directory=out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
