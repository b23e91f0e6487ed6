import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medfed.common.errors import RunError
from medfed.common.files import write_json
from medfed.simulations.reporting.run_data import load_run
from medfed.simulations.reporting.tables import in_order

MakeRun = Callable[..., Path]


def test_load_run_reads_what_the_server_wrote(make_run: MakeRun) -> None:
    run = load_run(make_run())
    assert run.run == "run-a"
    assert [*run.arms] == ["federated", "pooled", *(f"local-site-{i}" for i in (1, 2, 3))]
    assert run.federated is not None
    assert len(run.federated.rounds) == 3
    assert run.federated.state == "finished"
    assert [*run.federated.ledgers] == ["site-1", "site-2", "site-3"]
    assert run.federated.ledgers["site-1"].steps == 12
    assert run.sites["site-1"].train.images == sum(run.sites["site-1"].train.labels)
    assert len(run.examples) == 8


@pytest.mark.parametrize("exists", [True, False])
def test_load_run_refuses_what_is_no_run_folder(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "holiday"
    if exists:
        folder.mkdir()
    with pytest.raises(RunError, match=r"Expected a run folder with study.toml at .*holiday"):
        load_run(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.toml", "[study\n"),
        ("study.toml", "[study]\nname = 'x'\n"),
        ("environment.json", "{"),
        ("environment.json", "[]"),
        ("simulation.json", '{"sites": {"site-1": {"train": {}}}}'),
        ("simulation.json", '{"sites": 3}'),
        ("simulation.json", '{"dataset": "phantom"}'),
        ("arms/federated/rounds.jsonl", "{}\n"),
        ("arms/federated/rounds.jsonl", "[1]\n"),
        ("arms/federated/rounds.jsonl", "half a line\n"),
        ("arms/federated/outcome.json", "no"),
        ("arms/federated/final_sums.json", '{"site-1": {"count": [3]}}'),
        ("arms/federated/final_sums.json", '{"groups": [{"sites": [], "sums": {"count": [3]}}]}'),
        ("arms/federated/final_sums.json", '{"site-1": [1]}'),
        ("examples/examples.json", '[{"image": "000.png"}]'),
        ("examples/examples.json", "{"),
    ],
)
def test_load_run_names_the_damaged_file(make_run: MakeRun, name: str, content: str) -> None:
    run = make_run(arms=("federated",))
    (run / name).write_text(content)
    with pytest.raises(RunError, match=rf"{Path(name).name} is damaged"):
        load_run(run)


def test_load_run_refuses_sums_of_another_shape(make_run: MakeRun) -> None:
    run = make_run(arms=("federated",))
    path = run / "arms" / "federated" / "final_sums.json"
    sums = json.loads(path.read_text())
    [group] = sums["groups"]
    group["sums"]["confusion"] = group["sums"]["confusion"][:-1]
    write_json(path, sums)
    with pytest.raises(RunError, match=r"expected confusion with shape \(4, 2, 2\)"):
        load_run(run)


@pytest.mark.parametrize("image", ["../study.toml", "/etc/passwd", "absent.png", "notes.txt"])
def test_load_run_takes_no_image_but_pngs_beside_the_table(make_run: MakeRun, image: str) -> None:
    run = make_run(arms=("federated",))
    (run / "examples" / "notes.txt").write_text("not a picture")
    row = {"image": image, "site": "s", "truth": [], "predicted": [], "probabilities": {"a": 1},
           "correct": True}  # fmt: skip
    (run / "examples" / "examples.json").write_text(json.dumps([row]))
    with pytest.raises(RunError, match=r"examples.json is damaged"):
        load_run(run)


def test_in_order_puts_2_before_10() -> None:
    names = ["site-10", "site-2", "site-1", "7b", "vidir_modern", "site-1b", ""]
    assert sorted(names, key=in_order) == [
        *("", "7b", "site-1", "site-1b", "site-2", "site-10", "vidir_modern")
    ]
