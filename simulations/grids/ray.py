"""Runs an arm through Flower's simulation runtime on Ray: for clusters, and to compare with.

Sites are the same `site.toml` files as everywhere; the runtime numbers its virtual nodes, and the
number is looked up in the sorted list of sites.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfed.common.errors import RunError
from medfed.server.app import main as server_main


class RaySite(ClientApp):
    """The ClientApp, told by the runtime which of `sites` it is."""

    def __init__(self, app: ClientApp, sites: Sequence[str]) -> None:
        super().__init__()
        self._app = app
        self._sites = list(sites)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the site with this partition number."""
        context.node_config["site"] = self._sites[int(context.node_config["partition-id"])]
        return self._app(message, context)


def run_on_ray(arm: Path, sites: Sequence[Path], app: ClientApp, *, workers: int) -> None:
    """Run the arm in folder `arm` with one actor for each worker; `app` is what sites run.

    Raises:
        RunError: Ray is not installed, or too few sites answered.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _own_folder():
        _run(arm, sites, app, workers)


@contextmanager
def _own_folder() -> Iterator[None]:
    """Give Ray a temporary folder of its own, unless the user names one.

    Set before anything of Ray is imported: a stale cluster address in the usual place makes Ray
    wait in silence.
    """
    if "RAY_TMPDIR" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="medfed-ray-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["RAY_TMPDIR"]


def _run(arm: Path, sites: Sequence[Path], app: ClientApp, workers: int) -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        raise RunError(
            "Expected Ray for --grid ray, found none. Run pip install 'medfed[ray]', or use "
            "--grid local."
        ) from None
    from flwr.simulation import run_simulation

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower's simulation gives an empty run_config; the deployment's names the arm.
        context.run_config["arm"] = str(arm)
        server_main(grid, context)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server_app,
        client_app=RaySite(app, [str(path.resolve()) for path in sites]),
        num_supernodes=len(sites),
        backend_config={
            # A worker that is given none of a GPU cannot see it.
            "client_resources": {
                "num_cpus": 1.0,
                "num_gpus": min(1.0, torch.cuda.device_count() / workers),
            },
            "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        },
    )
