"""The benchmark study as an NVFLARE job: its recipe of FedAvg on its simulator, nothing added."""

import argparse
import json
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from plain_loop import Cnn, read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what overhead.py wrote")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--clients-at-a-time", type=int, required=True)
    parser.add_argument("--client-options", type=json.loads, required=True, help="JSON")
    options = parser.parse_args()
    sites = sorted(read_rows(options.folder))
    given = " ".join(f"--{name} {value}" for name, value in options.client_options.items())
    recipe = FedAvgRecipe(
        name="benchmark",
        model=Cnn(options.image_size),
        min_clients=len(sites),
        num_rounds=options.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=f"{options.folder} {given}",
    )
    environment = SimEnv(
        clients=sites,
        num_threads=options.clients_at_a_time,
        workspace_root=str(options.workspace),
    )
    recipe.execute(environment)


if __name__ == "__main__":
    main()
