"""The last complete round on disk: weights as safetensors, everything else in `state.json`.

`state.json` is replaced last and atomically, and names the weights' file and SHA-256: whenever the
process is killed, the folder holds one whole round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from medfed.common.errors import RunError
from medfed.common.files import read_json, write_atomically, write_json
from medfed.common.state_dicts import StateDict, digest
from medfed.server.records import RoundRecord, round_from_dict


@dataclass(frozen=True)
class Checkpoint:
    """A complete round: the global weights after it, its record, and what else goes on from it.

    Attributes:
        weights: Global weights after the round.
        record: What happened in it.
        average: Moving average of the weights, in float64; None if the study has none.
        update_bound: Bound on an update's norm in the next round; None unless the server clips.
        states: What else the algorithm goes on from, by name (moments of the server's optimiser;
            what each site drifts by).
    """

    weights: StateDict
    record: RoundRecord
    average: StateDict | None = None
    update_bound: float | None = None
    states: Mapping[str, StateDict] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, study_digest: str) -> None:
    """Write `checkpoint` and then forget the one before it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"round-{checkpoint.record.round_number:05d}"
    state: dict[str, Any] = {
        "study": study_digest,
        "weights": f"{stem}.safetensors",
        "names": list(checkpoint.weights),
        "sha256": digest(checkpoint.weights),
        "record": checkpoint.record.to_dict(),
    }
    write_weights(folder / state["weights"], checkpoint.weights)
    if checkpoint.average is not None:
        state["average"] = f"{stem}-average.safetensors"
        state["average_sha256"] = digest(checkpoint.average)
        write_weights(folder / state["average"], checkpoint.average)
    if checkpoint.update_bound is not None:
        # JSON holds Python's float to the last bit: the next round clips to the very same bound.
        state["update_bound"] = checkpoint.update_bound
    if checkpoint.states:
        state["states"] = _save_states(folder, stem, checkpoint.states)
    write_json(folder / "state.json", state)
    kept = {state["weights"], state.get("average")}
    kept |= {saved["file"] for saved in state.get("states", {}).values()}
    for old in folder.glob("round-*.safetensors"):
        if old.name not in kept:
            old.unlink()


def _save_states(
    folder: Path, stem: str, states: Mapping[str, StateDict]
) -> dict[str, dict[str, Any]]:
    """Write each state to a file of its own, but for those that are there from an earlier round.

    With many sites, of which some take part, a round writes what these changed.
    """
    before: dict[str, Any] = {}
    if (folder / "state.json").exists():
        before = read_json(folder / "state.json").get("states", {})
    saved = {}
    for number, (name, arrays) in enumerate(states.items()):
        sha256 = digest(arrays)
        if before.get(name, {}).get("sha256") == sha256:
            saved[name] = before[name]
            continue
        file = f"{stem}-state-{number}.safetensors"
        write_weights(folder / file, arrays)
        saved[name] = {"file": file, "names": list(arrays), "sha256": sha256}
    return saved


def load_checkpoint(folder: Path, study_digest: str) -> Checkpoint | None:
    """Return the last complete round, or None before the first.

    Raises:
        RunError: A checkpoint that is damaged or of another study.
    """
    if not (folder / "state.json").exists():
        return None
    state: dict[str, Any] = read_json(folder / "state.json")
    if state["study"] != study_digest:
        raise RunError(
            f"The checkpoint in {folder} is of another study. Resume with the run's own study, "
            "or start a new run."
        )
    average = None
    if "average" in state:
        average = _read(folder, state["average"], state["names"], state["average_sha256"])
    return Checkpoint(
        weights=_read(folder, state["weights"], state["names"], state["sha256"]),
        record=round_from_dict(state["record"]),
        average=average,
        update_bound=state.get("update_bound"),
        states={
            name: _read(folder, saved["file"], saved["names"], saved["sha256"])
            for name, saved in state.get("states", {}).items()
        },
    )


def _read(folder: Path, file: str, names: Sequence[str], sha256: str) -> StateDict:
    arrays = read_weights(folder / file, names)
    if digest(arrays) != sha256:
        raise RunError(f"The weights in {folder} are not those that were saved. Start a new run.")
    return arrays


def write_weights(path: Path, weights: StateDict) -> None:
    """Write weights as safetensors, atomically."""
    write_atomically(path, save(dict(weights)))


def read_weights(path: Path, names: Sequence[str]) -> StateDict:
    """Read safetensors in the order of `names` (the file sorts them its own way)."""
    try:
        loaded = load(path.read_bytes())
        return {name: loaded[name] for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}). Start a new run.") from None
