"""Draw a loss beside cross-entropy, and print how it learns, without any training.

python docs/examples/draw_a_loss.py [FILE.svg | FILE.png | FILE.pdf]
"""

import sys

import taylorglo
from taylorglo.report.figures import loss_figure

# A loss that the TaylorGLO papers found on MNIST.
THETA = [-10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513]
# Squared error, -(t - h)^2, is a Taylor loss, too, up to a term without h.
SQUARED_ERROR = [0, 0, 0, -1, 0, 2, 0, 0]
CLASSES = 10


def main(path: str) -> None:
    """Draw the loss to a file, and print its dynamics."""
    drive, rate, confidence = taylorglo.dynamics(THETA, CLASSES)
    # A > 0: the first step raises the logit of the target over the other logits.
    print(f"learning drive A = {drive:.4g}")
    # B <= 0: a drift of all images to one class is damped.
    print(f"collapse rate B = {rate:.4g}")
    # The loss pulls a sample up to the confidence p*, and pushes it back above p*. Without a p* it
    # pulls to the end.
    print("equilibrium confidence p* =", "none" if confidence is None else f"{confidence:.4g}")
    losses = {"found on MNIST": THETA, "squared error": SQUARED_ERROR}
    figure = loss_figure(losses, CLASSES)
    figure.savefig(path)
    print(f"drawn to {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "loss.svg")
