"""The report of a sweep: its record, the verdict in one sentence, a table for the terminal, and one HTML page.

The page is a single file that loads nothing: style sheet and figures (SVG) are inside. The same record gives the same
bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from taylorglo.loss.dynamics import coefficients, dynamics
from taylorglo.loss.polynomial import checked_theta
from taylorglo.report.figures import (
    attack_figure,
    finite,
    loss_figure,
    search_figure,
    seeds_figure,
    svg,
)
from taylorglo.report.html import Html, centred, expanded, formula, plot, tabular
from taylorglo.report.record import ComparisonRow, SweepRecord
from taylorglo.report.verdict import (
    NOTHING,
    SIGNIFICANCE,
    best_baseline,
    comparison_cells,
    count,
    number,
    percent,
    standing_verdict,
    verdict,
)

_ATTACKS = {
    "fgsm": "FGSM",
    "pgd-ce": "PGD, cross-entropy",
    "pgd-dlr": "PGD, DLR",
    "worst": "worst of all",
}


def render(record: SweepRecord) -> str:
    """The report as one HTML page that loads nothing from elsewhere.

    Raises:
        InputError: the champion's theta or the number of classes is not valid.
    """
    page = Template(
        files("taylorglo.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    return page.substitute(
        title=escape(f"Loss-function sweep: {record.name}"),
        byline=escape(f"TaylorGLO · {record.created} · {record.num_classes} classes"),
        verdict=escape(f"{verdict(record)} {standing_verdict(record)}".rstrip()),
        headline=_headline(record),
        notes=_notes(record.notes),
        comparison=_comparison(record),
        champion=_champion(record),
        search=_search(record),
        attacks=_attacks(record),
        tuning=_tuning(record),
        time=_time(record),
        facts=_facts(record),
        usage=_usage(record),
    )


def _headline(record: SweepRecord) -> str:
    tiles = []
    best = best_baseline(record)
    if record.comparison:
        tiles.append(_accuracy_tile("Champion, test accuracy", record.comparison[0]))
    if best is not None:
        name, value, detail = _accuracy_tile("Best baseline", record.comparison[best])
        tiles.append((name, value, f"{detail}, {record.comparison[best].loss}"))
    trained = sum(generation.trained for generation in record.generations)
    drawn = sum(generation.drawn for generation in record.generations)
    tiles.append(
        (
            "Candidates trained",
            str(trained),
            f"of {drawn} drawn, {len(record.generations)} generations",
        )
    )
    tiles.append(
        ("Wall time", _duration(record.wall_seconds), f"{_share(record)} of it inside trainings")
    )
    inner = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for name, value, detail in tiles
    )
    return f'<dl class="headline">{inner}</dl>'


def _accuracy_tile(name: str, row: ComparisonRow) -> tuple[str, str, str]:
    mean, plus_minus, spread = percent(row.accuracies).partition(" ± ")
    detail = f"± {spread}, " if plus_minus else ""
    return name, f"{mean} %", f"{detail}n = {count(row.accuracies)}"


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<aside><ul>{items}</ul></aside>" if notes else ""


def _comparison(record: SweepRecord) -> str:
    if not record.comparison:
        return "<p>No loss was trained in full.</p>"
    header, rows = comparison_cells(record)
    caption = (
        "Test accuracy: mean ± sample standard deviation over n seeds. p: Welch’s two-sided test against the champion; "
        "p (Holm): the same, adjusted for the number of baselines, and what the verdict above goes by "
        f"(significance level {SIGNIFICANCE})."
    )
    figure = seeds_figure([(row.loss, row.accuracies, row.curve) for row in record.comparison])
    drawn = "Test accuracy of each seed (dots), with mean (tick) and one standard deviation (line)."
    if any(row.curve for row in record.comparison):
        drawn += (
            " Right: validation accuracy while training, mean over the seeds, in the same colours."
        )
    return tabular(caption, header, rows, classes=["first"]) + plot(
        svg(figure, "seeds", "Test accuracy by seed"), drawn
    )


def _champion(record: SweepRecord) -> str:
    champion, n = record.champion, record.num_classes
    theta, order = checked_theta(champion.theta, champion.order)
    drive, collapse, rest = dynamics(theta, n)
    found = (
        f"Trial {champion.trial} of generation {champion.generation}, with fitness {percent([champion.fitness])} %. "
        "Per sample the loss is <i>L</i> = −Σ<sub><i>k</i></sub> <i>f</i>(<i>t<sub>k</sub></i>, <i>h<sub>k</sub></i>) "
        "for targets <i>t</i> and softmax outputs <i>h</i>:"
    )
    parts = [f"<p>{found}</p>"]
    if theta[0] or theta[1]:
        parts += [
            formula(centred(theta, order)),
            "<p>and, multiplied out, without terms that are free of <i>h</i>:</p>",
        ]
    parts.append(formula(expanded(theta, order)))
    if any(value and idle for value, _, idle in expanded(theta, order)):
        parts.append(
            "<p>The term in grey has no effect on training: Σ<sub><i>k</i></sub> <i>h<sub>k</sub></i> is always 1.</p>"
        )
    if order <= 3:
        parts.append(_reduced(theta, drive))
    figure = loss_figure({"champion": theta}, n)
    caption = (
        "Left: loss of a sample by the probability <i>p</i> of its class, the other classes sharing the rest. Right: "
        "net pull <i>g</i>(<i>p</i>), minus its slope: positive values raise <i>p</i>, negative ones push it back. "
        "Both curves are divided by their pull at chance, a factor that the learning rate takes up."
    )
    parts.append(plot(svg(figure, "loss", "Shape and net pull of the champion"), Html(caption)))
    rows: list[Sequence[str]] = [
        ("learning drive", Html("<i>A</i>"), number(drive), _drive_text(drive)),
        ("collapse rate", Html("<i>B</i>"), number(collapse), _collapse_text(drive, collapse)),
        ("equilibrium confidence", Html("<i>p</i>*"), number(rest), _rest_text(rest, drive, n)),
    ]
    what = f"What the loss does, from its coefficients and the number of classes alone (n = {n})."
    parts.append(tabular(what, ["", "", "value", "meaning"], rows, numeric=(2,)))
    return "\n".join(parts)


def _reduced(theta: Sequence[float], drive: float) -> str:
    c = coefficients(theta)
    names = (
        "<i>c</i><sub>y</sub>′ = <i>c</i><sub>y</sub> + <i>c</i><sub>yy</sub>",
        "<i>c</i><sub>hy</sub>",
        "<i>c</i><sub>h</sub>",
        "<i>c</i><sub>hh</sub>",
    )
    values = (c.cy + c.cyy, c.chy, c.ch, c.chh)
    rows: list[Sequence[str]] = [("value", *map(number, values))]
    if drive:
        rows.append(
            (Html("divided by |<i>A</i>|"), *(number(value / abs(drive)) for value in values))
        )
    caption = (
        "The four numbers that decide all of a training with one-hot targets: ∂<i>f</i>/∂<i>h</i> = "
        "<i>c</i><sub>y</sub>′ <i>t</i> + <i>c</i><sub>hy</sub> <i>h t</i> + <i>c</i><sub>h</sub> <i>h</i> + "
        "<i>c</i><sub>hh</sub> <i>h</i><sup>2</sup>, up to a constant. "
        "Their common scale is a factor on the learning rate."
    )
    return tabular(Html(caption), ["", *map(Html, names)], rows)


def _search(record: SweepRecord) -> str:
    if not record.generations:
        return "<p>No generation was recorded.</p>"
    rows: list[Sequence[str]] = [
        (
            str(g.number),
            *map(str, (g.drawn, g.rejected, g.diverged, g.failed, g.trained)),
            percent([] if g.best is None else [g.best]),
            percent([] if g.median is None else [g.median]),
            _seconds(g.seconds),
        )
        for g in record.generations
    ]
    counts = ("drawn", "rejected", "diverged", "failed", "trained")
    totals = [str(sum(getattr(g, name) for g in record.generations)) for name in counts]
    scored = [g.best for g in record.generations if g.best is not None]
    total = (
        "all",
        *totals,
        percent([max(scored)] if scored else []),
        "",
        _seconds(_sum(g.seconds for g in record.generations)),
    )
    caption = (
        "What became of the candidates of each generation. Rejected ones were not trained at all, diverged ones "
        "ran off to infinity or had learned nothing when they were looked at, failed ones could not be evaluated. "
        "Best and median fitness in %, seconds of wall time."
    )
    header = ["generation", *counts, "best", "median", "seconds"]
    drawn = (
        "Fitness of every trained candidate (dots) by generation; right, the better half of them. Fitness comes from "
        "short trainings and the validation split, so it is not comparable with test accuracy."
    )
    trajectory = tabular(caption, header, [*rows, total], classes=[""] * len(rows) + ["total"])
    if not scored:
        return trajectory
    figure = search_figure(
        [(g.number, g.fitnesses) for g in record.generations], record.num_classes
    )
    return plot(svg(figure, "search", "Fitness by generation"), drawn) + trajectory


def _attacks(record: SweepRecord) -> str:
    robustness = record.robustness
    if not robustness:
        return "<p>No network was attacked.</p>"
    epsilons = sorted({row.epsilon for row in robustness})
    attacks: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in robustness:
        losses = attacks.setdefault(_ATTACKS.get(row.attack, row.attack), {})
        losses.setdefault(row.loss, {})[row.epsilon] = row.accuracies
    rows: list[Sequence[str]] = []
    classes = []
    for attack, losses in attacks.items():
        for position, (loss, points) in enumerate(losses.items()):
            cells = (percent(points.get(epsilon, [])) for epsilon in epsilons)
            rows.append(("" if position else attack, loss, *cells))
            classes.append("" if position or not rows[1:] else "group")
    sizes = sorted({len(row.accuracies) for row in robustness})
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    caption = (
        f"Accuracy (%) by ε, mean ± sample standard deviation over n = {n} attacked networks per loss. ε = 0 is the "
        "clean accuracy on the attacked images. No test was made of these differences. A loss that flattens "
        "confidences also flattens the gradient that an attack on cross-entropy follows: the worst over "
        "all attacks is the row to go by."
    )
    header = ["attack", "loss", *(f"ε = {epsilon:g}" for epsilon in epsilons)]
    order = list(
        dict.fromkeys([row.loss for row in record.comparison] + [row.loss for row in robustness])
    )
    figure = attack_figure(
        {a: {loss: list(p.items()) for loss, p in by.items()} for a, by in attacks.items()}, order
    )
    drawn = "Accuracy against the size of the perturbation, by attack; whiskers are one standard deviation."
    return plot(svg(figure, "attacks", "Accuracy under attack"), drawn) + tabular(
        caption, header, rows, numeric=range(2, len(header)), classes=classes
    )


def _tuning(record: SweepRecord) -> str:
    if not record.tuning:
        return "<p>No baseline was tuned.</p>"
    rates = sorted({row.learning_rate for row in record.tuning})
    used = {row.loss: row.learning_rate for row in record.comparison[1:]}
    rows: list[Sequence[str]] = []
    for loss in dict.fromkeys(row.loss for row in record.tuning):
        tried = {row.learning_rate: row.accuracies for row in record.tuning if row.loss == loss}
        scored = {
            rate: float(finite(values).mean())
            for rate, values in tried.items()
            if finite(values).size
        }
        chosen = used.get(loss, max(scored, key=lambda rate: scored[rate], default=None))
        cells = [percent(tried[rate]) if rate in tried else "" for rate in rates]
        marked = [
            Html(f"<b>{escape(c)}</b>") if rate == chosen else c
            for rate, c in zip(rates, cells, strict=True)
        ]
        rows.append((loss, *marked, _rate_text(chosen, sorted(tried))))
    caption = (
        "Validation accuracy (%) by learning rate, mean ± sample standard deviation over the attempts; the rate chosen "
        "is in bold. Where it lies on the edge of the grid, a better one may lie outside, and the baseline may be "
        "stronger than shown."
    )
    return tabular(
        caption, ["loss", *map(number, rates), "chosen"], rows, numeric=range(1, len(rates) + 1)
    )


def _time(record: SweepRecord) -> str:
    total = record.wall_seconds  # and not the sum: on a cluster, stages overlap
    share = _share(record)
    lead = (
        f"<p>The sweep took {escape(_duration(record.wall_seconds))} of wall time; {share} of it "
        "was spent inside trainings.</p>"
    )
    if not total > 0:
        return lead
    rows: list[Sequence[str]] = []
    for stage, seconds in record.seconds.items():
        part = seconds / total if math.isfinite(seconds) else 0.0
        bar = Html(f'<span class="bar" style="width:{100 * part:.1f}%"></span>')
        rows.append((stage, _seconds(seconds), f"{100 * part:.1f}", bar))
    rows.append(("all", _seconds(total), "100.0", ""))
    caption = "Wall time by stage: seconds in which at least one task was at it."
    classes = [""] * len(record.seconds) + ["total"]
    return lead + tabular(
        caption, ["stage", "seconds", "%", ""], rows, numeric=(1, 2), classes=classes, wide=3
    )


def _facts(record: SweepRecord) -> str:
    groups: dict[str, Mapping[str, object]] = {
        "Settings": record.settings,
        "Data": record.provenance,
        "Software and hardware": record.environment,
    }
    parts = []
    for title, values in groups.items():
        items = "".join(
            f"<div><dt>{escape(k)}</dt><dd>{escape(str(v)) or NOTHING}</dd></div>"
            for k, v in values.items()
        )
        parts.append(
            f'<h3>{title}</h3><dl class="facts">{items}</dl>'
            if items
            else f"<h3>{title}</h3><p>None recorded.</p>"
        )
    return "\n".join(parts)


def _usage(record: SweepRecord) -> str:
    numbers = ", ".join(repr(float(value)) for value in record.champion.theta)
    rate = (
        f" with learning rate {number(record.comparison[0].learning_rate)}"
        if record.comparison
        else ""
    )
    code = (
        "import taylorglo\n\n"
        'loss = taylorglo.load_loss("loss.json")\n'
        f"# or taylorglo.loss.functions.TaylorLoss([{numbers}], order={record.champion.order})\n"
        "loss(model(images), labels).backward()\n"
    )
    return (
        "<p>The loss takes logits and class indices, or logits and soft targets, as "
        f"<code>torch.nn.CrossEntropyLoss</code> does. It was trained here{escape(rate)}; its scale is part of that "
        f"rate.</p>\n<pre>{escape(code)}</pre>"
    )


def _drive_text(drive: float) -> str:
    if drive > 0:
        return "positive: the first gradient step raises the logit of the target over the others"
    return "not positive: the first gradient step does not raise the logit of the target; it cannot learn from scratch"


def _collapse_text(drive: float, collapse: float) -> str:
    if collapse <= 0:
        return "not positive: a drift of all samples to one class is damped"
    if drive > 0:
        return f"positive: a drift of all samples to one class grows at {number(collapse / drive)} of the learning drive"
    return "positive: a drift of all samples to one class grows"


def _rest_text(rest: float | None, drive: float, num_classes: int) -> str:
    if drive <= 0:
        return "no meaning: training never sets out for it"
    if rest is None:
        return "there is none: the pull goes on to full confidence, as with cross-entropy"
    if rest >= 1:
        return "full confidence, as with squared error"
    alpha = (1 - rest) * num_classes / (num_classes - 1)
    return f"pulls below it, pushes back above it, as label smoothing with α = {alpha:.3f} would"


def _seconds(value: float) -> str:
    return f"{value:,.1f}".replace(",", "\u202f") if math.isfinite(value) else NOTHING


def _sum(values: Iterable[float]) -> float:
    return math.fsum(value for value in values if math.isfinite(value))


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _rate_text(chosen: float | None, tried: Sequence[float]) -> str:
    if chosen is None:
        return NOTHING
    if len(tried) == 1:
        return f"{number(chosen)}, the only one tried"
    return number(chosen) + (", at the edge of the grid" if chosen in (tried[0], tried[-1]) else "")


def _share(record: SweepRecord) -> str:
    return (
        f"{100 * record.training_share:.0f} %" if math.isfinite(record.training_share) else NOTHING
    )
