"""Search a loss for segmentation: logits (N, C, H, W), a mask of classes for each image.

python docs/examples/segmentation.py [FOLDER]
"""

import sys

import torch
from torch import Tensor, nn

import taylorglo

CLASSES, SIDE = 3, 16  # background, discs, squares


def draw(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images (N, 1, SIDE, SIDE) with a disc and a square, and their masks."""
    random = torch.Generator().manual_seed(seed)
    across, down = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    masks = torch.zeros(number, SIDE, SIDE, dtype=torch.int64)
    for mask, (x, y, u, v) in zip(
        masks, torch.randint(3, SIDE - 3, (number, 4), generator=random), strict=True
    ):
        mask[(across - x).abs().maximum((down - y).abs()) <= 2] = 2
        mask[(across - u) ** 2 + (down - v) ** 2 <= 8] = 1
    noise = torch.randn(number, 1, SIDE, SIDE, generator=random)
    return (masks > 0).float()[:, None] + 0.5 * noise, masks


def mean_iou(predicted: Tensor, masks: Tensor) -> float:
    """Return intersection over union, the mean over the classes."""
    pairs = [(predicted == label, masks == label) for label in range(CLASSES)]
    shares = [(one & other).sum() / (one | other).sum().clamp(min=1) for one, other in pairs]
    return float(torch.stack(shares).mean())


def train(
    loss: nn.Module,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    split: taylorglo.Split,
    device: str,
) -> float:
    """Train a small convolutional network with a loss, and return its mean IoU."""
    images, masks = (part.to(device) for part in draw(256, seed=0))
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, CLASSES, 5, padding=2)
    ).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    for _ in range(steps):
        batch = torch.randint(len(images), (16,), device=device)
        optimizer.zero_grad()
        loss(network(images[batch]), masks[batch]).backward()  # every pixel is a sample
        optimizer.step()
    images, masks = draw(256, seed=1 if split.name == "validation" else 2)
    with torch.no_grad():
        return mean_iou(network(images.to(device)).argmax(dim=1).cpu(), masks)


if __name__ == "__main__":
    found = sys.argv[1] if len(sys.argv) > 1 else "runs/segmentation"
    options = {"classes": CLASSES, "steps": 200, "learning_rate": 0.01, "score": "mean IoU"}
    print(taylorglo.search(train, **options, folder=found).loss)
