"""The server's memory does not grow with the number of sites."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from medfed.common import messages
from medfed.common.errors import RefusalReason
from medfed.common.messages import TrainReply
from medfed.common.study_file import load_study
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.strategy import FedAvgStrategy
from medfed.simulations.grids.local import LocalGrid

STUDY = load_study(Path(__file__).parents[2] / "studies" / "demo.toml")
NUM_WEIGHTS = 250_000  # one megabyte


def one_round(num_sites: int) -> tuple[int, float]:
    """Return the peak of traced bytes in a round of `num_sites`, and the first new weight."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        update = {"w": np.full(NUM_WEIGHTS, float(context.node_id), np.float32)}
        reply = TrainReply(
            site=f"s{context.node_id}", update=update, num_examples=None, loss=None, epsilon=None,
            noise="seeded",
        )  # fmt: skip
        return Message(messages.pack_train_reply(reply), reply_to=message)

    sites = [Participant(f"s{node}", node, None) for node in range(2, 2 + num_sites)]
    strategy = FedAvgStrategy(STUDY, "run", sites, [], frozen_sha256="none")
    arrays = messages.pack_arrays({"w": np.zeros(NUM_WEIGHTS, np.float32)})
    with LocalGrid(app, {site.node_id: Path("unused") for site in sites}) as grid:
        outgoing = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        tracemalloc.start()
        replies = Exchange(grid).replies(outgoing, 60.0)
        new, _ = strategy.aggregate_train(1, replies)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert new is not None
    assert strategy.num_updates == num_sites
    return peak, float(messages.unpack_arrays(new)["w"][0])


def test_server_memory_is_flat_in_the_number_of_sites() -> None:
    few, mean_of_few = one_round(4)
    many, mean_of_many = one_round(64)
    # Sixty more updates of a megabyte each; were they held, this would be several times as much.
    assert many < few + 8 * 4 * NUM_WEIGHTS
    assert (mean_of_few, mean_of_many) == (3.5, 33.5)


def test_grid_closes_while_replies_are_waiting() -> None:
    app = ClientApp()
    answered = threading.Event()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        answered.set()
        content = messages.pack_refusal(messages.Refusal(site="s", reason=RefusalReason.DATA))
        return Message(content, reply_to=message)

    nodes = range(2, 12)
    content = messages.pack_refusal(messages.Refusal(site="s", reason=RefusalReason.DATA))
    with LocalGrid(app, {node: Path("unused") for node in nodes}) as grid:
        grid.push_messages([Message(content, node, messages.TRAIN) for node in nodes])
        assert answered.wait(10)
    # Reached at all: closing did not wait for a server that no longer pulls.
