"""The site's side of the stock Flower app: plain_loop.py's training behind the Message API."""

import functools
from pathlib import Path

import plain_loop
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


# An actor of Ray serves many messages: read the images of a site once, as medfed does.
@functools.cache
def load(folder: str, partition: int) -> tuple[plain_loop.Images, plain_loop.Images]:
    sites = plain_loop.load_sites(Path(folder))
    return sites[sorted(sites)[partition]]


def start(
    message: Message, context: Context
) -> tuple[plain_loop.Cnn, plain_loop.Images, plain_loop.Images]:
    config = context.run_config
    torch.set_num_threads(int(config["threads"]))
    model = plain_loop.Cnn(int(config["image-size"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    training, test = load(str(config["data"]), int(context.node_config["partition-id"]))
    return model, training, test


@app.train()
def train(message: Message, context: Context) -> Message:
    model, training, _ = start(message, context)
    config = context.run_config
    loss = plain_loop.train(model, training, int(config["epochs"]), int(config["batch-size"]))
    metrics = MetricRecord({"loss": loss, "num-examples": len(training[1])})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, _, test = start(message, context)
    figures = plain_loop.figures(*plain_loop.predict(model, test))
    metrics = MetricRecord({**figures, "num-examples": len(test[1])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
