"""The layout of the store: where a sweep keeps its files, and how they are named."""

LOSS = "loss.json"  # the champion's loss; also its name as an artifact in MLflow
NETWORK = "model.safetensors"  # a network that was trained with the champion's loss


def report(sweep: str) -> str:
    """Return the key of a sweep's report."""
    return f"{sweep}/report.html"


def dataset(sweep: str) -> str:
    """Return the key of a sweep's prepared data set."""
    return f"{sweep}/data.safetensors"


def champion(sweep: str, name: str = LOSS) -> str:
    """Return the key of a file of a sweep's champion, ``LOSS`` or ``NETWORK``."""
    return f"{sweep}/champion/{name}"


def run_state(sweep: str) -> str:
    """Return the key of the note about a sweep's unfinished pipeline run."""
    return f"{sweep}/run.json"


def training(sweep: str, key: str) -> str:
    """Return the key of the result of a training in full."""
    return f"{sweep}/trainings/{key}.json"


def weights(sweep: str, key: str) -> str:
    """Return the key of the weights of a training in full."""
    return f"{sweep}/trainings/{key}.safetensors"


def evaluation(key: str) -> str:
    """Return the key of a short training, which all sweeps of a store share."""
    return f"evaluations/{key}.json"


def registered_loss(sweep: str) -> str:
    """Return the name of a sweep's loss in MLflow's model registry."""
    return f"{sweep}-loss"
