"""`medfed site init`: asks what only the hospital knows, or nothing at all with --yes."""

import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medfed.cli import site_init
from medfed.client.site import load_site
from medfed.common.errors import DataError, SiteConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "client" / "agent"))

from trial_hospital import PLANTED, make_store

app = typer.Typer()


@app.callback()
def _root() -> None:
    """Make `init` a command of its own."""


site_init.add_to(app)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"))


def run(*arguments: object, answers: str = "") -> str:
    """Return what was printed; an error that medfed raises on purpose comes through."""
    done = CliRunner().invoke(app, ["init", *map(str, arguments)], input=answers)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_answers_make_a_site_and_the_way_on_is_told(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "clinic"
    printed = run(folder, answers=f"clinic\n{store}\n\nrecord\n2.5\nyes\n")
    site = load_site(folder / "site.toml")
    assert (site.name, site.policy.unit, site.policy.max_epsilon) == ("clinic", "record", 2.5)
    assert site.policy.release_evaluation
    assert [site.path(path) for path in site.data.stores] == [store]
    assert "48 images" in printed
    for command in ("site enroll INVITE", "site preflight", "site start", f"cd {folder}"):
        assert command in printed
    for planted in PLANTED:
        assert planted not in printed


def test_enter_takes_the_safe_default(tmp_path: Path, store: Path) -> None:
    run(tmp_path, answers=f"clinic\n{store}\n\n\n\n\n")
    policy = load_site(tmp_path / "site.toml").policy
    assert (policy.unit, policy.max_epsilon, policy.release_evaluation) == ("patient", 8.0, False)


def test_wrong_answer_is_asked_again_with_the_reason(tmp_path: Path, store: Path) -> None:
    answers = ["two words", "clinic", "/nowhere", store, "", "people", "patient", "-1", "lots"]
    answers += ["4", "perhaps", "n"]
    printed = run(tmp_path, answers="".join(f"{answer}\n" for answer in answers))
    assert "Expected a name" in printed
    assert "/nowhere is not there" in printed
    assert "medfed data prepare" in printed
    assert "Expected one of patient, record, site, none, got 'people'" in printed
    assert printed.count("Expected a number above 0") == 2
    assert "Expected yes or no, got 'perhaps'" in printed
    assert load_site(tmp_path / "site.toml").policy.max_epsilon == 4


def test_several_stores_can_be_named(tmp_path: Path, store: Path) -> None:
    other = make_store(tmp_path / "other", "a", "c")
    same = make_store(tmp_path / "same")
    printed = run(tmp_path / "x", answers=f"clinic\n{store}\n{other}\n{same}\n\n\n\n\n")
    assert "same task and labels" in printed
    site = load_site(tmp_path / "x" / "site.toml")
    assert [site.path(path) for path in site.data.stores] == [store, same]


def test_yes_asks_nothing(tmp_path: Path, store: Path) -> None:
    printed = run(tmp_path, "--yes", "--name", "clinic", "--store", store)
    assert "Weakest privacy" not in printed
    assert load_site(tmp_path / "site.toml").policy.unit == "patient"


def test_options_answer_everything(tmp_path: Path, store: Path) -> None:
    subset = tmp_path / "subset.json"
    subset.write_text('{"train": [[0, 1]], "test": [[2]]}')
    run(
        *(tmp_path / "x", "-y", "--name", "clinic", "--store", store, "--subset", subset),
        *("--unit", "none", "--epsilon", "12", "--delta", "1e-6", "--public-patients", "90"),
        "--evaluation",
    )
    site = load_site(tmp_path / "x" / "site.toml")
    assert (site.policy.unit, site.policy.max_epsilon) == ("none", 12)
    assert (site.policy.target_delta, site.data.public_num_patients) == (1e-6, 90)
    assert site.policy.release_evaluation
    assert site.path(site.data.subset) == subset


def test_weak_choices_are_called_weak(tmp_path: Path, store: Path) -> None:
    options = ("-y", "--name", "clinic", "--store", store)
    printed = run(tmp_path / "a", *options, "--unit", "none", "--epsilon", "50")
    assert "no epsilon bounds what they give away" in printed
    assert "50 promises little" in printed
    assert "promises little" not in run(tmp_path / "b", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "two words"], "Expected a name"),
        (["--unit", "people"], "Expected one of"),
        (["--epsilon", "0"], "above 0"),
        (["--epsilon", "nan"], "above 0"),
        (["--delta", "1"], "target_delta"),
        (["--subset", "/nowhere"], "--subset"),
        (["--store", "/nowhere"], "is not there"),
    ],
)
def test_wrong_option_is_an_error_and_makes_nothing(
    tmp_path: Path, store: Path, options: list[str], message: str
) -> None:
    given = ["-y", "--name", "clinic", "--store", str(store), *options]
    with pytest.raises(SiteConfigError, match=message):
        run(tmp_path / "x", *given)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "text", ["", "{", '{"train": [[0]]}', '{"train": [[0]], "test": [[9999]]}']
)
def test_subset_that_cannot_be_used_is_an_error_before_anything_is_made(
    tmp_path: Path, store: Path, text: str
) -> None:
    subset = tmp_path / "subset.json"
    subset.write_text(text)
    with pytest.raises(DataError, match="is not a subset file of 1 store"):
        run(tmp_path / "x", "-y", "--name", "c", "--store", store, "--subset", subset)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("missing", ["--name", "--store"])
def test_what_has_no_default_must_be_named_with_yes(
    tmp_path: Path, store: Path, missing: str
) -> None:
    options = {"--name": "clinic", "--store": store}
    del options[missing]
    [(name, value)] = options.items()
    with pytest.raises(SiteConfigError, match=f"Expected {missing} with --yes"):
        run(tmp_path, "--yes", name, value)


def test_site_that_is_there_is_not_asked_about(tmp_path: Path, store: Path) -> None:
    run(tmp_path, "-y", "--name", "clinic", "--store", store)
    before = (tmp_path / "site.toml").read_bytes()
    with pytest.raises(SiteConfigError, match="exists and is left as it is"):
        run(tmp_path, answers="other\n")
    assert (tmp_path / "site.toml").read_bytes() == before
