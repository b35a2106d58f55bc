"""What is measured of networks: scores, cross-entropy, and the error of calibration."""

import math
from collections.abc import Collection
from statistics import fmean

import torch
from torch import Tensor

from taylorglo.data.dataset import Split
from taylorglo.results import Counts

BINS = 15  # of the calibration error, as in Guo et al. 2017
MOST_CLASSES = 30  # of which a confusion matrix is kept
_SCORE_BINS = 100  # of the ROC curve


class Tally:
    """What M networks answered to the images of a split, as far as some scores need it.

    Args:
        split: its images have to be added, each once.
        networks: M.
        wanted: the scores that will be asked for; "counts" if :meth:`counts` will be.
    """

    def __init__(self, split: Split, networks: int, wanted: Collection[str]) -> None:
        self.sizes = class_sizes(split)
        self._images = len(split)
        self._wanted = wanted
        device = self.sizes.device
        self._correct = torch.zeros(networks, len(self.sizes), device=device)
        self._named: Tensor | None = None
        self._entropy = torch.zeros(networks, device=device)
        self._gaps = torch.zeros(networks, BINS, dtype=torch.float64, device=device)
        self._counts: list[_Counting] = []

    def add(self, logits: Tensor, labels: Tensor, entropy: Tensor) -> None:
        """Add a batch.

        An image with NaN among its logits is classified wrongly, and counts as named by no class.

        Args:
            logits: (M, B, n), in float32.
            labels: (B,).
            entropy: sum of the cross-entropy over the batch, in nats, (M,).
        """
        named = logits.argmax(dim=2)
        # argmax picks a NaN, so that a diverged network would score on the class of its NaN.
        is_named = ~logits.isnan().any(dim=2)
        self._correct.index_add_(1, labels, ((named == labels) & is_named).float())
        self._entropy += entropy
        if "macro-f1" in self._wanted:
            if self._named is None:
                self._named = torch.zeros(len(logits), logits.shape[2], device=logits.device)
            self._named.scatter_add_(1, named, is_named.float())
        if "ece" in self._wanted:
            self._gaps += _gaps(logits.softmax(dim=2), labels, BINS)
        if "counts" in self._wanted:
            if not self._counts:
                self._counts = [_Counting(network) for network in logits]
            for counting, network, known in zip(self._counts, logits, is_named, strict=True):
                counting.add(network[known].softmax(dim=1), labels[known])

    def counts(self) -> list[Counts]:
        """Return the answers of each network, if "counts" was wanted."""
        return [counting.result() for counting in self._counts]

    @property
    def cross_entropies(self) -> list[float]:
        """The mean cross-entropy of each network, in nats."""
        values: list[float] = (self._entropy / self._images).tolist()
        return values

    @property
    def calibration_errors(self) -> list[float]:
        """The expected calibration error of each network, in [0, 1], as of `calibration_error`."""
        values: list[float] = (self._gaps.abs().sum(dim=1) / self._images).tolist()
        return values

    def scores(self, score: str) -> list[float]:
        """Return the score of each network: in [0, 1], the higher the better.

        - ``accuracy`` and ``balanced-accuracy``: as :func:`scores` has them.
        - ``macro-f1``: the mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that have images.
        - ``negative-log-likelihood``: exp(-NLL), with NLL the mean cross-entropy in nats. It is the
          geometric mean of the probability of the right class; 1/n for even probabilities.
        - ``ece``: 1 - ECE.

        A network whose logits are all NaN has 0. So has, by the last two scores, one with a single
        number that is not finite; by the others, each image counts for itself.
        """
        if score == "negative-log-likelihood":
            return [math.exp(-x) if math.isfinite(x) else 0.0 for x in self.cross_entropies]
        if score == "ece":
            return [1 - x if math.isfinite(x) else 0.0 for x in self.calibration_errors]
        if score == "macro-f1":
            assert self._named is not None
            present = self.sizes > 0
            named = self._named[:, : len(self.sizes)]
            both = (self.sizes + named)[:, present].double()
            return [fmean(row) for row in (2 * self._correct[:, present] / both).tolist()]
        return scores(self._correct, self.sizes, score)


class _Counting:
    """Counts the answers of one network, of which ``logits`` (B, n) has the first ones."""

    def __init__(self, logits: Tensor) -> None:
        classes = logits.shape[1]
        kept = classes if classes <= MOST_CLASSES else 0
        device = logits.device
        self._confusion = torch.zeros(kept, kept, dtype=torch.int64, device=device)
        self._reliability = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self._scores = torch.zeros(_SCORE_BINS, 2, dtype=torch.int64, device=device)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add the probabilities (B, n) of images of these classes (B,)."""
        confidences, named = probabilities.double().max(dim=1)
        if len(self._confusion):
            ones = torch.ones_like(labels)
            self._confusion.index_put_((labels, named), ones, accumulate=True)
        right = (named == labels).double()
        rows = torch.stack([torch.ones_like(confidences), right, confidences], dim=1)
        self._reliability.index_add_(0, _bin(confidences, BINS), rows)
        bins = (probabilities * _SCORE_BINS).long().clamp(0, _SCORE_BINS - 1)
        is_other = torch.ones_like(bins).scatter_(1, labels[:, None], 0)
        self._scores.index_put_((bins, is_other), torch.ones_like(bins), accumulate=True)

    def result(self) -> Counts:
        """Return what was counted."""
        return Counts(
            confusion=self._confusion.tolist(),
            reliability=[(int(n), int(r), c) for n, r, c in self._reliability.tolist()],
            scores=self._scores.tolist(),
        )


def class_sizes(split: Split) -> Tensor:
    """Return the number of images by class, as floats, up to the last class that has any."""
    return torch.bincount(split.labels).float()


def scores(correct: Tensor, sizes: Tensor, score: str) -> list[float]:
    """Return the score in [0, 1] of each of M networks, one that needs the right answers alone.

    ``accuracy`` is the part of the images that are classified correctly. ``balanced-accuracy`` is
    the mean of this part over the classes that have images (Brodersen et al. 2010, ICPR, "The
    balanced accuracy and its posterior distribution").

    Args:
        correct: number of images that are classified correctly, by network and class, (M, n).
        sizes: number of images by class, (n,).
        score: what to compute.
    """
    if score == "accuracy":
        accuracies: list[float] = (correct.sum(dim=1) / int(sizes.sum())).tolist()
        return accuracies
    present = sizes > 0
    by_class = correct[:, present].double() / sizes[present]
    # Means that do not depend on the number of networks to the last bit.
    return [fmean(row) for row in by_class.tolist()]


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error in [0, 1] (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Args:
        probabilities: (N, n).
        labels: class indices (N,).
        bins: number of bins of equal width. A confidence c is in bin i if i < bins c <= i + 1.
    """
    return float(_gaps(probabilities[None], labels, bins).abs().sum() / len(labels))


def _gaps(probabilities: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Return the right answers without the confidences, summed by network and bin, (M, bins).

    ``probabilities`` are (M, N, n).
    """
    confidences, named = probabilities.double().max(dim=2)
    index = _bin(confidences, bins)
    gaps = torch.zeros(len(probabilities), bins, dtype=torch.float64, device=probabilities.device)
    return gaps.scatter_add_(1, index, (named == labels).double() - confidences)


def _bin(confidences: Tensor, bins: int) -> Tensor:
    """Return the bin of each confidence c: i if i < bins c <= i + 1."""
    return (confidences * bins).ceil().long().clamp(1, bins) - 1
