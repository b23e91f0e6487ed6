"""The benchmark study on pfl's simulator: its FedAvg, its local SGD, the network of plain_loop.py.

Sites are pfl's users, all of them in every round, weighed by their images; a user's data set is
shuffled anew each time that it is made, since pfl takes batches in order. Evaluation is a callback
after every round with the lines of plain_loop.py. Several processes (`torchrun`) share the users of
a round, and here the sites of an evaluation too.
"""

import json

import numpy as np
import plain_loop
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor


class Model(plain_loop.Cnn):
    """With the loss and the metrics that pfl asks of a network."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return F.cross_entropy(self(plain_loop.to_model(images)), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        self.eval()
        with torch.inference_mode():
            loss = F.cross_entropy(self(plain_loop.to_model(images)), labels, reduction="sum")
        return {"loss": Weighted(float(loss), len(labels))}


class Evaluation(TrainingProcessCallback):
    """Keeps the figures of all sites' test images after every round."""

    def __init__(self, tests: list[plain_loop.Images]) -> None:
        self.history: list[dict[str, float]] = []
        self._tests = tests

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        workers = get_ops().distributed
        mine = self._tests[workers.global_rank :: workers.world_size]
        parts = [plain_loop.predict(model.pytorch_model, test) for test in mine]
        if workers.world_size > 1:
            everyone: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(workers.world_size)]
            torch.distributed.all_gather_object(everyone, parts)
            parts = [part for own in everyone for part in own]
        logits, labels = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        self.history.append(plain_loop.figures(logits, labels))
        return False, Metrics()


def users(sites: dict[str, tuple[plain_loop.Images, plain_loop.Images]]) -> FederatedDataset:
    """Return the training images of every site as a user of pfl's."""

    def shuffled(site: str) -> Dataset:
        images, labels = sites[site][0]
        order = torch.randperm(len(labels))
        return Dataset([images[order], labels[order]])

    return FederatedDataset(shuffled, MinimizeReuseUserSampler(sorted(sites)))


def main() -> None:
    options = plain_loop.read_options(__doc__)
    np.random.seed(0)  # pfl draws from it
    sites = plain_loop.load_sites(options.folder)
    network = Model(options.image_size)
    model = PyTorchModel(
        network,
        local_optimizer_create=lambda parameters, lr: torch.optim.SGD(
            parameters, lr=lr, momentum=plain_loop.MOMENTUM
        ),
        # A step of size 1 along the mean of the sites' changes: FedAvg.
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    evaluation = Evaluation([test for _, test in sites.values()])
    data = users(sites)
    FederatedAveraging().run(
        backend=SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            # pfl's own evaluation of users is not asked for: the callback is.
            evaluation_frequency=options.rounds + 1,
            train_cohort_size=len(sites),
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=options.epochs,
            local_learning_rate=plain_loop.LEARNING_RATE,
            local_batch_size=options.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=plain_loop.EVALUATION_BATCH),
        callbacks=[evaluation],
        send_metrics_to_platform=False,
    )
    if get_ops().distributed.global_rank == 0:
        options.out.write_text(json.dumps(evaluation.history))


if __name__ == "__main__":
    main()
