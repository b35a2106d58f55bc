"""Check that the image holds what a component needs, and that it trains.

The build of the image runs this script; ``python3 /opt/smoke.py`` runs it again on a node.
"""

import importlib
import pkgutil

import kfp
import mlflow
import torch

import taylorglo
import taylorglo_pipelines
from taylorglo.loss.functions import TaylorLoss

for package in (taylorglo, taylorglo_pipelines):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
network = torch.nn.Linear(16, 4).to(device)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
loss = TaylorLoss([0.5, 1, 0, 0, 1, 0, 0, 0], classes=4).to(device)
before = network.weight.detach().clone()
value = loss(network(torch.randn(8, 16, device=device)), torch.arange(8, device=device) % 4)
value.backward()
optimizer.step()
if not value.isfinite() or torch.equal(before, network.weight):
    raise SystemExit("the training step did not change the network")
versions = f"torch {torch.__version__}, kfp {kfp.__version__}, mlflow {mlflow.__version__}"
print(f"a training step on {device}: {versions}")
