"""Files of pretrained weights: found or fetched by their pinned checksum, read without any code.

A file is found, in this order: at `model.weights` itself, in the cache under its SHA-256, in the
folder that a hospital names, under its own name or its SHA-256. Only a URL is ever fetched.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor

from medfed.common.download import Checksum, cache_folder, download, file_checksum
from medfed.common.errors import DataError, StudyError

logger = logging.getLogger(__name__)

_SAFE = (".safetensors",)
_TORCH = (".pt", ".pth", ".bin")
# Where training programs put the weights within a checkpoint.
_NESTS = ("state_dict", "model", "model_state_dict")


def resolve_weights(
    weights: str, sha256: str, folder: Path | None, *, may_download: bool = True
) -> Path:
    """Return the file that `weights` stands for, downloaded once if it is an http or https URL.

    Downloads go to `<cache>/weights/<sha256><suffix>`, the cache being `MEDFED_CACHE` or
    `~/.cache/medfed`.

    Args:
        weights: A path, or an http, https or file URL.
        sha256: Hexadecimal SHA-256 that the file must have. A URL needs it; a path may do without
            (""), and is then taken as it is.
        folder: Where the file may lie under its own name or as `<sha256><suffix>`.
        may_download: Whether a URL may be asked for at all. Where others choose it, no.

    Raises:
        StudyError: No such file, another checksum, or no way to download it. The message holds
            paths: it is for this machine's log.
    """
    parts = urlsplit(weights)
    remote = "://" in weights and parts.scheme in ("http", "https")
    if "://" in weights and not sha256:
        raise StudyError(
            f"Expected model.weights_sha256 with the URL {weights}, got none. Pin it: what is "
            "loaded must be what was vetted."
        )
    if "://" in weights and parts.scheme not in ("http", "https", "file"):
        raise StudyError(
            f"Expected an http, https or file URL, or a path, got {weights}. Fetch the file and "
            "set model.weights to its path."
        )
    local = Path(unquote(parts.path)) if "://" in weights else Path(weights).expanduser()
    pinned = f"{sha256}{local.suffix}"
    cached = cache_folder() / "weights" / pinned
    places = [] if remote else [local]
    places += [cached] if sha256 else []
    places += [folder / local.name, folder / pinned] if folder is not None else []
    found = _first_that_fits(places, sha256)
    if found is not None:
        return found
    if not remote:
        _refuse(places, sha256)
    _check_suffix(local)
    if not may_download:
        raise StudyError(
            f"Expected the weights of {weights} on this machine, found none, and this site asks no "
            f"address that a study names. Fetch and vet the file, and place it in the folder of "
            f"compute.weights in site.toml as {pinned}; or set compute.download_weights = true."
        )
    try:
        download(weights, cached, Checksum("sha256", sha256), elsewhere="set model.weights to it")
    except DataError as error:
        raise StudyError(str(error)) from None
    return cached


def _first_that_fits(places: list[Path], sha256: str) -> Path | None:
    for place in places:
        if place.is_file() and (not sha256 or _sha256_of(place) == sha256):
            return place
    return None


def _refuse(places: list[Path], sha256: str) -> None:
    """Say why none of `places` will do."""
    for place in places:
        if place.is_file():
            raise StudyError(
                f"Expected SHA-256 {sha256} of {place}, got {_sha256_of(place)}. Get the file "
                "that was vetted, or vet this one and set model.weights_sha256 to its checksum."
            )
    raise StudyError(
        f"Expected the weights of model.weights at {', or at '.join(map(str, places))}; found "
        "none. Place the file there, or set model.weights to its path."
    )


_checksums: dict[tuple[Path, int, int], str] = {}
_checksums_lock = threading.Lock()


def _sha256_of(path: Path) -> str:
    """Checksum of a file, read once a process as long as its size and time stay the same.

    A simulation resolves the same large file for each of its sites.
    """
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns)
    with _checksums_lock:
        if key not in _checksums:
            _checksums[key] = file_checksum(path, "sha256")
        return _checksums[key]


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, on the CPU. Nothing in the file is executed.

    Weights that a checkpoint keeps under "state_dict", "model" or "model_state_dict" are found,
    and the "module." that data-parallel training puts before every name is taken off.

    Args:
        path: .safetensors, or .pt, .pth, .bin as written by torch.save.

    Raises:
        StudyError: Missing, damaged, in need of code to be read, or not finite numbers by name.
    """
    if not path.is_file():
        raise StudyError(f"Expected a weights file at {path}, found none. Check model.weights.")
    _check_suffix(path)
    tensors = _named_tensors(_read(path), path)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SAFE + _TORCH:
        raise StudyError(
            f"Expected a weights file named *{', *'.join(_SAFE + _TORCH)}, got {path.name!r}. "
            "Save the weights as one of these and name that file in model.weights."
        )


def _read(path: Path) -> object:
    # The readers raise whatever their parsers stumble over. Whatever it is, there is no second try
    # by less careful means.
    try:
        if path.suffix in _SAFE:
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise StudyError(
            f"{path}: expected weights only, got a file that is damaged or would run code when "
            f"read ({type(error).__name__}: {reason}). Get it again, or save its state_dict as "
            ".safetensors where you trust it."
        ) from None


def _named_tensors(content: object, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    way_out = "Save model.state_dict() of the network, and nothing else, and name that file."
    if not isinstance(content, Mapping) or not content:
        raise StudyError(
            f"{path}: expected tensors by name, got {type(content).__name__}"
            f"{' without entries' if isinstance(content, Mapping) else ''}. {way_out}"
        )
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise StudyError(
                f"{path}: expected dense real tensors by name, got {type(value).__name__} under "
                f"{name!r}. {way_out}"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise StudyError(
                f"{path}: expected finite numbers, got NaN or infinity in {name}. "
                "Get a file of a training that did not diverge."
            )
        tensors[name] = value.detach()
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_complex()
