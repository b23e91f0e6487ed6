"""Finding plug-ins among installed packages, and loading the one that a study names."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import StudyError
from medfed.common.models import build_model
from medfed.common.plugins import ModelPlugin, load_plugin
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, parse_study
from medfed.common.tasks import make_task
from medfed.simulations.plugins import complete

Install = Callable[..., None]

NET = """
from torch import nn
from medfed.common.plugins import ModelPlugin, Section

class Options(Section):
    width: int = 3
    name: str | None = None

def build(options, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape.image_size ** 2, shape.num_outputs))

net = ModelPlugin(Options, build)
"""


def study(**sections: Any) -> StudyConfig:
    table: dict[str, Any] = {
        "study": {"name": "test"},
        "task": {"classes": ["a", "b"]},
        "data": {"image_size": 16},
        "training": {"local_steps": 1},
        "privacy": {"unit": "none"},
    }
    return parse_study({**table, **sections}, "test")


def with_net(name: str = "net", **model: Any) -> StudyConfig:
    return study(model={"name": name, **model})


def test_plugin_builds_the_network_and_its_settings_are_written_out(install: Install) -> None:
    install("my-nets", NET, "[medfed.models]", "net = my_nets:net", version="2.1")
    found = complete(with_net())
    assert found.plugins.model == "my-nets==2.1"
    assert found.model.options == {"width": 3}
    model = build_model(found, make_task(found).num_outputs)
    assert [tuple(p.shape) for p in model.parameters()] == [(2, 256), (2,)]
    assert parse_study(found.model_dump(exclude_none=True), "again") == found


def test_unknown_name_lists_what_is_installed_and_the_nearest(
    install: Install, tmp_path: Path
) -> None:
    install("my-nets", NET, "[medfed.models]", "net = my_nets:net")
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "x"\n[task]\nclasses = ["a", "b"]\n[training]\nlocal_steps = 1\n'
        '[model]\nname = "nets"\n'
    )
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.toml")
    for part in ('model.name = "nets"', "mean net or unet?", "net (my-nets==1.0)", "pip install"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("section", "own"),
    [
        ('[model]\nname = "cn"', "cnn"),
        ('[aggregation]\nrule = "mediann"', "median"),
        ('[simulation]\ndataset = "phantm"', "phantom"),
    ],
)
def test_a_name_of_medfeds_own_is_what_a_typo_may_mean(
    tmp_path: Path, section: str, own: str
) -> None:
    (tmp_path / "study.toml").write_text(
        '[study]\nname = "x"\n[task]\nclasses = ["a", "b"]\n[training]\nlocal_steps = 1\n' + section
    )
    with pytest.raises(StudyError, match=rf"Did you mean .*\b{own}\b.*\? "):
        load_study(tmp_path / "study.toml")


def test_plugin_with_a_name_of_medfeds_own_is_said_to_be_unused(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("my-nets", NET, "[medfed.models]", "cnn = my_nets:net")
    assert complete(with_net("cnn")).plugins.model == ""
    assert 'model.name = "cnn" is medfed\'s own: nothing of my-nets==1.0 is used' in caplog.text
    caplog.clear()
    complete(study(model={"name": "resnet18"}, plugins={"model": "my-nets==1.0"}))
    assert 'model.name = "resnet18" is medfed\'s own: nothing of my-nets==1.0' in caplog.text
    caplog.clear()
    complete(with_net("resnet18"))
    assert caplog.text == ""


def test_name_in_two_packages_needs_the_study_to_say_which(install: Install) -> None:
    install("one", NET, "[medfed.models]", "net = one:net")
    install("two", NET, "[medfed.models]", "net = two:net", version="3")
    with pytest.raises(StudyError, match=r"one==1\.0, two==3.*plugins\.model"):
        complete(with_net())
    chosen = study(model={"name": "net"}, plugins={"model": "two==3"})
    assert complete(chosen).plugins.model == "two==3"


def test_a_package_cannot_replace_what_is_medfeds_own(install: Install) -> None:
    install("bad", "raise SystemExit", "[medfed.models]", "cnn = bad:net")
    found = complete(with_net("cnn"))
    assert found.plugins.model == ""
    assert type(build_model(found, 2)).__name__ == "Cnn"
    assert "bad" not in sys.modules


def test_only_the_named_entry_point_is_loaded_and_reading_loads_none(install: Install) -> None:
    install("good", NET, "[medfed.models]", "net = good:net")
    install("other", "raise SystemExit", "[medfed.models]", "other = other:net")
    read = study(model={"name": "net"}, plugins={"model": "good==1.0"})
    assert "good" not in sys.modules
    load_plugin(read, "model", ModelPlugin)
    assert "good" in sys.modules
    assert "other" not in sys.modules


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("net = 5", "ModelPlugin, got int"),
        ("other = 5", "AttributeError"),
        (NET + "\ndef build(o, s):\n    raise KeyError('w')\nnet = ModelPlugin(Options, build)",
         "KeyError: 'w'"),
        (NET + "\nnet = ModelPlugin(Options, lambda o, s: 3)", "parameters, got int"),
    ],
    ids=["import", "exit", "kind", "attribute", "build", "result"],
)  # fmt: skip
def test_what_goes_wrong_in_a_plugin_is_told_with_its_package(
    install: Install, code: str, said: str
) -> None:
    install("broken", code, "[medfed.models]", "net = broken:net", version="0.3")
    with pytest.raises(StudyError, match=r"plug-in net of broken==0\.3.*") as caught:
        complete(with_net())
    assert said in str(caught.value)
    assert "authors" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widht": 4}, "widht: unknown key. Did you mean width?"),
        ({"width": "wide"}, "width: Input should be a valid integer"),
    ],
    ids=["name", "value"],
)
def test_plugin_checks_its_own_settings(
    install: Install, options: dict[str, Any], said: str
) -> None:
    install("my-nets", NET, "[medfed.models]", "net = my_nets:net")
    with pytest.raises(StudyError) as caught:
        complete(with_net(options=options))
    assert said in str(caught.value)
    assert "[model.options] of plug-in net of my-nets==1.0" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("my-nets==1.1", "installed here is 1.0"),
        ("their-nets==1.0", "pip install their-nets==1.0"),
    ],
    ids=["version", "package"],
)
def test_other_than_what_the_study_names_is_not_loaded(
    install: Install, asked: str, said: str
) -> None:
    install("my-nets", NET, "[medfed.models]", "net = my_nets:net")
    with pytest.raises(StudyError, match=said):
        build_model(study(model={"name": "net"}, plugins={"model": asked}), 2)
    assert "my_nets" not in sys.modules


def test_version_is_part_of_what_names_a_study() -> None:
    digests = {
        study(model={"name": "net"}, plugins={"model": f"my-nets=={v}"}).digest() for v in "12"
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"options": {"width": 3}}}, "model.options"),
        ({"task": {"classes": ["a", "b"], "options": {"x": 1}}}, "task.plugin names none"),
        ({"aggregation": {"options": {"x": 1}}}, "aggregation.rule names none"),
        ({"model": {"name": "net", "norm": "batch"}}, "never sees"),
        ({"model": {"name": "net"}, "task": {"type": "report"}}, "report_lstm alone"),
        ({"model": {"name": "net", "fusion": "late"}, "data": {"views": ["l", "r"]}}, "alone"),
        (
            {"model": {"name": "report_lstm"}, "task": {"type": "report", "plugin": "own"}},
            "belong together",
        ),
        (
            {"aggregation": {"rule": "own"}, "secure_aggregation": {"enabled": True}},
            "only the sum",
        ),
        (
            {
                "aggregation": {"rule": "own"},
                "privacy": {"unit": "site", "site": {"expected_sites": 5}},
            },
            "the mean of clipped updates",
        ),
        (
            {
                "aggregation": {"rule": "own"},
                "federation": {"algorithm": "fednova"},
            },
            "a rule of its own",
        ),
        (
            {
                "task": {"classes": ["a", "b"], "plugin": "own"},
                "semi_supervised": {"method": "pseudo_labels"},
            },
            "the plug-in's would not be used",
        ),
        ({"plugins": {"model": "my-nets"}}, "plugins.model"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_study_refuses_what_a_plugin_cannot_do(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study(**sections)


def test_rule_goes_with_the_privacy_of_patients() -> None:
    found = study(aggregation={"rule": "own"}, privacy={"unit": "patient"})
    assert found.aggregation.is_plugin
    assert not found.aggregation.robust
