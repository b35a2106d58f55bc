"""The outcome of a sweep in MLflow: its page, its contenders, and the champion in the registry."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from taylorglo.report import run_page
from taylorglo.report.record import SweepRecord
from taylorglo.report.verdict import beats_guessing, beats_standing, verdict
from taylorglo.results import Comparison, by_contender, mean_curve
from taylorglo.scores import known, metric
from taylorglo.services import layout
from taylorglo.services.mlflow import NOTE
from taylorglo.services.models import NETWORK
from taylorglo.tasks.context import Sweep

_FRONT = "pareto-front.csv"


@dataclass(frozen=True)
class Outcome:
    """What MLflow is told when a sweep ends.

    Attributes:
        record: of the sweep.
        comparison: the trainings of champion and baselines.
        attacked: when the attacks ended, in seconds since the epoch.
        champion: files of the champion by their names in MLflow.
    """

    record: SweepRecord
    comparison: Comparison
    attacked: float
    champion: Mapping[str, Path]

    def log(self, sweep: Sweep, page: Path) -> None:
        """Log page, contenders, metrics, curves, figures, and two tables.

        The tables are the Pareto front, and what the attacks found by image.

        Args:
            sweep: the context of the sweep.
            page: the report.

        Raises:
            ServiceError: the server, the database or the artifact store fails.
        """
        run_id = self._log_contenders(sweep)
        tracker = sweep.tracker
        tracker.log_metrics(run_page.metrics(self.record), once=run_page.TIMES)
        tracker.log_curves(run_page.curves(self.record), self.attacked)
        with tempfile.TemporaryDirectory() as name:
            files = {"report.html": page}
            for file, content in run_page.images(self.record).items():
                path = Path(name) / file
                path.write_bytes(content)
                files[f"figures/{file}"] = path
            key = layout.attacked_images(sweep.settings.name)
            # Somebody may have deleted it since the attacks.
            if self.record.attacked_images and sweep.store.exists(key):
                files[layout.ATTACKED_IMAGES] = Path(name) / layout.ATTACKED_IMAGES
                sweep.store.download(key, files[layout.ATTACKED_IMAGES])
            if front := run_page.front_table(self.record):
                path = Path(name) / _FRONT
                path.write_bytes(front)
                files[_FRONT] = path
            tracker.log_files(files)
        description = run_page.description(self.record, sweep.tracker.links(champion=run_id))
        tracker.log_tags({NOTE: description, "taylorglo.outcome": run_page.outcome(self.record)})

    def register(self, sweep: Sweep) -> str:
        """Register the champion, and return in a sentence whether it is the standing one.

        It becomes the standing champion if there is none that can be loaded, or if it beats the one
        there is. Its network gets the alias together with its loss. The versions are linked from
        the parent run, whose page has the verdict.

        Args:
            sweep: the context of the sweep.

        Raises:
            ServiceError: the server, the database or the artifact store fails.
        """
        name = layout.registered_loss(sweep.settings.name)
        if not beats_guessing(self.record):
            return f"It is not registered as a version of {name}."
        theta = json.dumps(self.record.champion.theta)
        # The network is among the files of the loss, and may be another one with the same theta.
        network = self.champion.get(layout.NETWORK)
        weights = network.read_bytes() if network else b""
        digest = hashlib.sha256(theta.encode() + weights).hexdigest()
        tags = {"taylorglo.sweep": sweep.settings.name, "taylorglo.theta": theta}
        version = sweep.tracker.register_loss(
            name,
            sweep.tracker.models.log_loss(self.champion, digest=digest, tags=tags),
            sweep.study,
            self.record.champion.theta,
            description=self._note(sweep, f'taylorglo.load_loss("models:/{name}@champion")'),
        )
        tags = {"taylorglo.loss": f"{name}/{version}", "taylorglo.digest": digest}
        number = self._register_network(sweep, tags)
        sentence, is_champion = self._compare_with_standing(sweep, name, version)
        if is_champion:
            # The network of an earlier champion is not that of this one.
            sweep.tracker.set_champion(layout.registered_network(sweep.settings.name), number)
        return sentence

    def _log_contenders(self, sweep: Sweep) -> str:
        """Log the champion and the baselines; return the id of the champion's run."""
        runs: dict[str, str] = {}
        score = metric(sweep.settings.evaluation.score)
        for group in by_contender(self.comparison.trainings):
            contender = group[0].contender
            is_champion = contender.name == "champion"
            accuracies = [training.test_accuracy for training in group]
            measured = known(accuracies)
            curve = mean_curve([training.training.curve for training in group])
            runs[contender.name] = sweep.tracker.log_final(
                "champion" if is_champion else "baseline",
                contender.name,
                params=contender.model_dump(),
                metrics={f"test_{score}": fmean(measured)} if measured else {},
                curves={
                    f"validation_{score}": [(step, accuracy) for step, accuracy, _ in curve],
                    f"test_{score}_by_seed": list(enumerate(accuracies)),
                },
                files=self.champion if is_champion else {},
            )
        return runs["champion"]

    def _register_network(self, sweep: Sweep, tags: Mapping[str, str]) -> str | None:
        """Register the champion's network, and return its version; None if none was logged.

        Args:
            sweep: the context of the sweep.
            tags: of the version: the same for a run that is repeated.
        """
        model_id = sweep.tracker.models.find(NETWORK)
        if model_id is None:
            return None
        name = layout.registered_network(sweep.settings.name)
        return sweep.tracker.models.register(
            name,
            model_id,
            tags={"taylorglo.study": sweep.study, **tags},
            description=self._note(sweep, f'mlflow.pytorch.load_model("models:/{name}@champion")'),
        )

    def _note(self, sweep: Sweep, load: str) -> str:
        """Return the description of a version: what the champion is worth, how it is loaded."""
        return (
            f"{verdict(self.record)} Search {sweep.study!r}. Load the standing champion: `{load}`."
        )

    def _compare_with_standing(self, sweep: Sweep, name: str, version: str) -> tuple[str, bool]:
        """Move the alias to a version that deserves it; return a sentence and whether it has it."""
        former = sweep.standing.version if sweep.standing else None
        lost = sweep.standing.lost if sweep.standing else ""
        if version == former:
            return f"models:/{name}@champion is version {version}, as before", True
        registered = f"models:/{name}/{version} is registered"
        if former is not None and not lost and not beats_standing(self.record):
            return f"{registered}; models:/{name}@champion stays version {former}", False
        if sweep.tracker.move_champion(name, version, standing=former):
            why = f", because version {former} is lost: {lost}" if lost else ""
            return f"models:/{name}@champion is version {version} now{why}", True
        moved = f"{registered}; models:/{name}@champion was moved by somebody else in between"
        return moved, False
