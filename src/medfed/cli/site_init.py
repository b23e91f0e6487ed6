"""`medfed site init`: asks a hospital the few questions that only it can answer."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from medfed.common.errors import SiteConfigError

if TYPE_CHECKING:
    from medfed.client.agent.setup import Answers, Unit
    from medfed.client.data.store import Store

T = TypeVar("T")

_MUCH = 10.0


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the site; made if missing.")
    ] = Path(),
    name: Annotated[str | None, typer.Option(help="Name of this site in the federation.")] = None,
    store: Annotated[
        list[Path] | None, typer.Option(help="Prepared store of this site's images; repeatable.")
    ] = None,
    subset: Annotated[
        Path | None, typer.Option(help="JSON file: which images of the stores, if not all.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="Weakest privacy accepted: patient, record, site or none.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget of this data set.")] = None,
    delta: Annotated[float, typer.Option(help="Delta at which the budget is stated.")] = 1e-5,
    public_patients: Annotated[
        int | None,
        typer.Option(min=1, help="Number of patients that this site states in public."),
    ] = None,
    evaluation: Annotated[
        bool | None,
        typer.Option("--evaluation/--no-evaluation", help="Let exact evaluation counts leave."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: options, else safe defaults.")
    ] = False,
) -> None:
    """Set up this hospital: site.toml, its keys and its state folder."""
    from medfed.client.agent.setup import Answers, check_free, check_site_name, set_up

    check_free(folder)
    desk = _Desk(silent=yes)
    site_name, stores = desk.ask("--name", name, check_site_name), desk.ask_stores(store or [])
    answers = Answers(
        name=site_name,
        stores=stores,
        subset=_subset(subset, stores),
        unit=desk.ask("--unit", unit, _unit),
        max_epsilon=desk.ask("--epsilon", _text(epsilon), _positive),
        target_delta=delta,
        public_num_patients=public_patients,
        release_evaluation=desk.ask("--evaluation", _text(evaluation), _yes_or_no),
    )
    set_up(folder, answers)
    _print_what_next(folder, answers)


class _Desk:
    """Asks what the options do not answer, or takes the default."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def ask(self, option: str, given: str | None, check: Callable[[str], T]) -> T:
        """Return the checked answer; a wrong one on the screen is asked again."""
        if given is not None:
            return check(given)
        question, explanation, default = _QUESTIONS[option]
        if self._silent:
            if default is None:
                raise SiteConfigError(f"Expected {option} with --yes, got none. Name it.")
            return check(default)
        typer.echo(f"\n{typer.style(explanation, dim=True)}")
        while True:
            try:
                return check(typer.prompt(question, default=default, show_default=bool(default)))
            except SiteConfigError as error:
                typer.secho(str(error), fg="red")

    def ask_stores(self, given: list[Path]) -> tuple[Path, ...]:
        """Return the folders of stores; at least one."""
        from medfed.client.agent.setup import check_alike

        if given:
            check_alike([_store(str(path)) for path in given])
            return tuple(given)
        stores = [self.ask("--store", None, _store)]
        while more := self.ask("--store again", None, _another):
            try:
                check_alike([*stores, more])
            except SiteConfigError as error:
                typer.secho(str(error), fg="red")
                continue
            stores.append(more)
        return tuple(store.folder for store in stores)


_QUESTIONS: dict[str, tuple[str, str, str | None]] = {
    "--name": (
        "Name of this site",
        "The name that the coordinator's invite carries, such as st-mary or clinic-7.",
        None,
    ),
    "--store": (
        "Folder of the prepared store",
        "Where this site's prepared images are. They stay there.",
        None,
    ),
    "--store again": ("Another store", "Leave empty if there is no more.", ""),
    "--unit": (
        "Weakest privacy accepted",
        "What must the noise hide? A study that hides less is refused.\n"
        "  patient  a patient with all their images; this site adds the noise itself\n"
        "  record   an image: less, where a patient has several\n"
        "  site     this hospital as a whole; others are trusted to add the noise\n"
        "  none     nothing: studies without privacy are accepted too",
        "patient",
    ),
    "--epsilon": (
        "Privacy budget, epsilon",
        "How much all studies together may give away of any one of them. Smaller is safer:\n"
        "1 is strong, 8 is common, over 10 promises little. Once it is spent, this site refuses.",
        "8",
    ),
    "--evaluation": (
        "May exact evaluation counts leave, yes or no",
        "How the model does on your held-out patients, as counts over at least five of them.\n"
        "Studies need some sites to say; no differential privacy covers these counts.",
        "no",
    ),
}


def _text(value: float | bool | None) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else repr(value)


def _unit(text: str) -> "Unit":
    units: dict[str, Unit] = {
        "patient": "patient",
        "record": "record",
        "site": "site",
        "none": "none",
    }
    if text.strip().lower() not in units:
        raise SiteConfigError(f"Expected one of {', '.join(units)}, got {text!r}.")
    return units[text.strip().lower()]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise SiteConfigError(f"Expected a number above 0, such as 8, got {text!r}.")
    return value


def _yes_or_no(text: str) -> bool:
    answers = {"y": True, "yes": True, "n": False, "no": False}
    if text.strip().lower() not in answers:
        raise SiteConfigError(f"Expected yes or no, got {text!r}.")
    return answers[text.strip().lower()]


def _store(text: str) -> "Store":
    from medfed.client.agent.setup import check_store

    store = check_store(Path(text.strip()).expanduser())
    typer.echo(f"  {store.task}: {', '.join(store.classes)}. {len(store):,} images.")
    return store


def _another(text: str) -> "Store | None":
    return _store(text) if text.strip() else None


def _subset(path: Path | None, stores: tuple[Path, ...]) -> Path | None:
    from medfed.client.agent.setup import check_store
    from medfed.client.data.site_data import read_subset

    if path is None:
        return None
    if not path.is_file():
        raise SiteConfigError(f"--subset: expected a file at {path}, found none. Mend the path.")
    read_subset(path, tuple(check_store(folder) for folder in stores))
    return path


def _print_what_next(folder: Path, answers: "Answers") -> None:
    typer.echo(f"\nSite {answers.name} is set up in {folder.resolve()}:")
    typer.echo("  site.toml   what this site allows; read it, every key says what it means")
    typer.echo("  keys/       its key towards the coordinator. It never leaves.")
    typer.echo("  state/      its privacy ledger. Back it up; never share it.")
    if answers.unit == "none":
        _warn("Studies without privacy are accepted: no epsilon bounds what they give away.")
    if answers.max_epsilon > _MUCH:
        _warn(f"An epsilon of {answers.max_epsilon:g} promises little. 8 or less is common.")
    typer.echo("\nNext:")
    if folder.resolve() != Path.cwd():
        typer.echo(f"  cd {folder}")
    typer.echo("  medfed site enroll INVITE   join, with the invite that the coordinator sent")
    typer.echo("  medfed site preflight       check network, clock, machine, data and ledger")
    typer.echo("  medfed site start           take part")


def _warn(text: str) -> None:
    typer.secho(f"  {text}", fg="yellow")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(init)
