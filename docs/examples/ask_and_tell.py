"""Own the loop of the search: ask for losses, train with them as you like, tell their scores.

python docs/examples/ask_and_tell.py [FOLDER]
"""

import sys

from own_training import CLASSES, train

import taylorglo


def search(folder: str, generations: int = 4, popsize: int = 8) -> taylorglo.TaylorLoss:
    """Search a loss; after an interruption, the same call goes on."""
    searcher = taylorglo.Searcher(classes=CLASSES, popsize=popsize, folder=folder)
    while searcher.generations < generations:
        for candidate in searcher.ask():
            score = train(
                candidate.loss,
                seed=candidate.seed,
                steps=300,
                learning_rate=0.003,
                # Candidates of one generation are validated on the same rows.
                split=taylorglo.Split("validation", folds=5, seed=candidate.seed),
                device="cpu",
            )
            searcher.tell(candidate, score)
            print(f"generation {candidate.generation}: {score:.1%}")
    return searcher.recommended()


if __name__ == "__main__":
    print(search(sys.argv[1] if len(sys.argv) > 1 else "runs/ask-and-tell"))
