"""Use a network of your own in a sweep: a factory, and how its sweep names it.

cd docs/examples
python custom_network.py
taylorglo run ../../pipelines/configs/digits.yaml \
    --set name=own-network --set model.name=custom_network:two_layers
"""

from torch import nn

from taylorglo.networks import factory

# MODULE:FUNCTION. The tasks of a sweep import the module: from the current folder on this machine,
# and from the image in a container or on a cluster.
NAME = "custom_network:two_layers"


def two_layers(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a perceptron with two hidden layers.

    Args:
        image_shape: (C, H, W) of the images. They arrive normalised by channel.
        num_classes: number of logits that the network has to return.
    """
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


if __name__ == "__main__":
    # A sweep makes the same check before it trains: the network is built, and tried on two images.
    factory.check(NAME, image_shape=(1, 8, 8), num_classes=10)
    print(f"model.name: {NAME}")
