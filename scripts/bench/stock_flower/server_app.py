"""The server's side of the stock Flower app: Flower's own FedAvg, nothing added."""

import json
from pathlib import Path

import plain_loop
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    folder = Path(str(config["data"]))
    num_sites = len(json.loads((folder / "sites.json").read_text()))
    torch.manual_seed(0)
    strategy = FedAvg(
        min_train_nodes=num_sites, min_evaluate_nodes=num_sites, min_available_nodes=num_sites
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(plain_loop.Cnn(int(config["image-size"])).state_dict()),
        num_rounds=int(config["rounds"]),
    )
    history = [
        dict(result.evaluate_metrics_clientapp[n]) for n in result.evaluate_metrics_clientapp
    ]
    Path(str(config["out"])).write_text(json.dumps(history))
