"""The layout of the store: the keys of a sweep's files."""

# The champion's loss, the same loss as a Python program, and a network that was trained with it.
# They are artifacts in MLflow under the same names.
LOSS = "loss.json"
PROGRAM = "loss.py"
NETWORK = "model.safetensors"

# What the attacks found for each image, an artifact in MLflow under the same name.
ATTACKED_IMAGES = "attacked-images.parquet"


def report(sweep: str) -> str:
    """Return the key of a sweep's report."""
    return f"{sweep}/report.html"


def result(sweep: str) -> str:
    """Return the key of the result of a sweep's last finished run."""
    return f"{sweep}/result.json"


def dataset(sweep: str) -> str:
    """Return the key of a sweep's prepared data set."""
    return f"{sweep}/data.safetensors"


def search_data(sweep: str, fingerprint: str) -> str:
    """Return the key of a sweep's data without the test split.

    Each content has a key of its own: a run that goes on with former data must not get new ones.
    """
    return f"{all_search_data(sweep)}/{fingerprint[:12]}.safetensors"


def champion(sweep: str, name: str = LOSS) -> str:
    """Return the key of a file of a sweep's champion: ``LOSS``, ``PROGRAM`` or ``NETWORK``."""
    return f"{sweep}/champion/{name}"


def attacked_images(sweep: str) -> str:
    """Return the key of the table of what the attacks of a sweep found for each image."""
    return f"{sweep}/{ATTACKED_IMAGES}"


def run_state(sweep: str) -> str:
    """Return the key of the state of a sweep's unfinished pipeline run."""
    return f"{sweep}/run.json"


def all_search_data(sweep: str) -> str:
    """Return the folder of a sweep's data without the test split."""
    return f"{sweep}/search-data"


def trainings(sweep: str) -> str:
    """Return the folder of a sweep's trainings in full."""
    return f"{sweep}/trainings"


def training(sweep: str, key: str) -> str:
    """Return the key of the result of a training in full."""
    return f"{trainings(sweep)}/{key}.json"


def weights(sweep: str, key: str) -> str:
    """Return the key of the weights of a training in full."""
    return f"{trainings(sweep)}/{key}.safetensors"


def attacks(sweep: str) -> str:
    """Return the folder of what attacks left of a sweep's networks."""
    return f"{sweep}/attacks"


def attack(sweep: str, training: str, key: str) -> str:
    """Return the key of what attacks left of the network of a training in full.

    The name begins with the key of the training, which decides how long the file is needed.
    """
    return f"{attacks(sweep)}/{training}.{key}.json"


def all_references(sweep: str) -> str:
    """Return the folder of the references of a sweep's studies."""
    return f"{sweep}/references"


def references(sweep: str, study: str) -> str:
    """Return the key of the list of the trainings in full that a study's report stands on."""
    return f"{all_references(sweep)}/{study}.json"


def evaluation(key: str) -> str:
    """Return the key of a short training, which all sweeps of a store share."""
    return f"evaluations/{key}.json"


def registered_loss(sweep: str) -> str:
    """Return the name of a sweep's loss in MLflow's model registry."""
    return f"{sweep}-loss"


def registered_network(sweep: str) -> str:
    """Return the name of the networks of a sweep's champions in MLflow's model registry."""
    return f"{sweep}-network"
