"""The site's side of the NVFLARE job: plain_loop.py's training behind the Client API.

Evaluation is of the model that comes, before it is trained further, as NVFLARE's own examples have
it: of the first model instead of the last, and as many in all.
"""

import argparse
from pathlib import Path

import nvflare.client as flare
import plain_loop
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what overhead.py wrote")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    training, test = plain_loop.load_sites(options.folder)[flare.get_site_name()]
    model = plain_loop.Cnn(options.image_size)
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(
            {name: torch.as_tensor(value) for name, value in received.params.items()}
        )
        figures = plain_loop.figures(*plain_loop.predict(model, test))
        plain_loop.train(model, training, options.epochs, options.batch_size)
        flare.send(
            flare.FLModel(
                params=model.state_dict(),
                metrics=figures,
                # What FedAvg weighs by.
                meta={"NUM_STEPS_CURRENT_ROUND": len(training[1])},
            )
        )


if __name__ == "__main__":
    main()
