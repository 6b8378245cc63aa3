"""The summaries as a Markdown table and as a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.emulators.figures import Estimate, Summary
from benchmarks.emulators.lab import Lab

RECOVERY_GOAL, HEALED_GOAL = 0.9, 0.5


def write_table(path: Path, summaries: Sequence[Summary], lab: Lab) -> None:
    """A table for every task, and one over all of them."""
    tasks = list(dict.fromkeys(summary.task for summary in summaries))
    parts = []
    for task in tasks:
        same = [summary for summary in summaries if summary.task == task]
        parts.append(f"### {task}\n\n{_references(same[0], lab)}\n\n{_table(same)}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def _references(summary: Summary, lab: Lab) -> str:
    full, chance = summary.figures["full_zero_shot"], summary.figures["chance"]
    text = summary.figures["text_perplexity_full_zero_shot"]
    return (
        f"Full model: {_points(full)} (chance {_points(chance)}), text perplexity {_plain(text)}. "
        f"{lab.seeds} seed{'s' * (lab.seeds > 1)}, {lab.settings.test_questions} test questions each, "
        f"{lab.settings.steps} steps of {lab.settings.batch_examples} examples."
    )


def _points(value: Estimate | None) -> str:
    """Percent."""
    if value is None:
        return "–"
    mean, error = value
    return f"{100 * mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _plain(value: Estimate | None) -> str:
    if value is None:
        return "–"
    mean, error = value
    return f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _megabytes(value: Estimate | None) -> str:
    return "–" if value is None else f"{value[0] / 1e6:.0f}"


def _whole(value: Estimate | None) -> str:
    return "–" if value is None else f"{value[0]:.0f}"


def _rate(value: Estimate | None) -> str:
    return "–" if value is None else f"{value[0]:g}"


_COLUMNS: tuple[tuple[str, str, Callable[[Estimate | None], str]], ...] = (
    ("MB", "bytes_shipped", _megabytes),
    ("share", "share_of_parameters", _plain),
    ("verbatim", "verbatim_share", _plain),
    ("emulator", "emulator_zero_shot", _points),
    ("tuned", "emulator_tuned", _points),
    ("**plug-in**", "plug_in", _points),
    ("upper bound", "upper_bound", _points),
    ("**recovery**", "recovery", _plain),
    ("**gap**", "gap", _points),
    ("healed skill", "healed_skill", _plain),
    ("tuned skill", "tuned_skill", _plain),
    ("text ppl", "text_perplexity_plug_in", _plain),
    ("answer ppl", "answer_perplexity_plug_in", _plain),
    ("rate", "rate", _rate),
    ("build s", "build_s", _whole),
)


def _table(summaries: Sequence[Summary]) -> str:
    heads = ["row", *(head for head, _, _ in _COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(_COLUMNS)]
    for summary in summaries:
        cells = [form(summary.figures[name]) for _, name, form in _COLUMNS]
        lines.append(f"| {' | '.join([summary.row, *cells])} |")
    return "\n".join(lines)


def write_plot(path: Path, summaries: Sequence[Summary]) -> None:
    """Recovery against healed skill, over all tasks; nothing is drawn of no summaries."""
    if not summaries:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = summaries[-1].task
    figure, axes = pyplot.subplots(figsize=(8, 6))
    for summary in (summary for summary in summaries if summary.task == last):
        healed, recovery = summary.figures["healed_skill"], summary.figures["recovery"]
        if healed is None or recovery is None:
            continue
        axes.errorbar(
            healed[0], recovery[0], xerr=healed[1] or 0, yerr=recovery[1] or 0, fmt="o", capsize=2
        )
        axes.annotate(
            summary.row,
            (healed[0], recovery[0]),
            fontsize=7,
            xytext=(4, 4),
            textcoords="offset points",
        )
    axes.axhline(RECOVERY_GOAL, linestyle=":", color="grey")
    axes.axvline(HEALED_GOAL, linestyle=":", color="grey")
    axes.set_xlabel("above-chance skill after healing, share of the full model's")
    axes.set_ylabel("recovery")
    axes.set_title("useful to tune on: up. useless to steal: left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
