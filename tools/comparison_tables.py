"""Tables of which runs err less than others, with intervals."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from deepres.recipes.named import paper
from deepres.recipes.recipe import SPLITS
from deepres.report.tables import markdown_table
from deepres.runs.compare import compare
from deepres.runs.finished import FinishedRun


def mean_and_spread(errors: Sequence[float]) -> str:
    """Return a mean with the standard deviation, where there is one."""
    return f"{mean(errors):.2f}{f' ± {stdev(errors):.2f}' if len(errors) > 1 else ''}" if errors else "missing"


def changes_table(runs: Iterable[FinishedRun]) -> str:
    """Return the comparison of runs with one line changed with their baseline, whose recipe's name is the shortest."""
    by_recipe: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    baseline, *changes = sorted(by_recipe, key=len)  # the names of changed recipes are longer
    comparisons = compare(by_recipe[baseline], *(by_recipe[change] for change in changes))
    rows = [["none: the baseline", mean_and_spread(comparisons[0].a.errors)]]
    rows[0] += [str(comparisons[0].a.n), "", "", "", ""]
    for c in comparisons:
        assert c.welch is not None
        assert c.holm is not None
        low, high = c.welch.interval or (float("nan"), float("nan"))
        changed = set(c.b.runs[0].recipe.split("+")) - set(baseline.split("+"))
        rows.append(
            [
                ", ".join(f"`{setting}`" for setting in sorted(changed)),
                mean_and_spread(c.b.errors),
                str(c.b.n),
                f"{c.difference:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                f"{c.holm:.2g}",
                "" if c.needed is None else f"{c.needed:,}",
            ]
        )
    headings = ["change", "test error %", "n", "difference", "95% interval", "p, Holm", "seeds needed"]
    return markdown_table(headings, rows, text_columns=1)


def precisions_table(runs: Iterable[FinishedRun], model: str, recipe: str) -> str:
    """Return the comparison of runs of one net and recipe in bfloat16 with those in float32."""
    of_both = [run for run in runs if (run.model, run.recipe) == (model, recipe)]
    groups = [[run for run in of_both if run.precision == precision] for precision in ("float32", "bfloat16")]
    (comparison,) = compare(*groups)
    assert comparison.welch is not None
    rows = [
        [group.runs[0].precision, mean_and_spread(group.errors), str(group.n), "", "", ""]
        for group in (comparison.a, comparison.b)
    ]
    low, high = comparison.interval or (float("nan"), float("nan"))
    rows[1][3:] = [f"{comparison.difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{comparison.welch.p_value:.2g}"]
    headings = [f"{model} by {recipe}", "test error %", "n", "difference", "95% interval", "p"]
    return markdown_table(headings, rows, text_columns=1)


def lengths_table(runs: Iterable[FinishedRun], models: Sequence[str], unlike: str) -> str:
    """Return the errors of nets in bfloat16 by their recipes, but for the one `unlike` them, the shortest first."""
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.model, run.result.compute or 0, run.seed)):
        if run.model in models and run.precision == "bfloat16" and run.recipe != unlike:
            groups.setdefault((run.model, run.recipe), []).append(run)
    rows = []
    for (model, recipe), group in groups.items():
        result = group[0].result
        assert result.compute is not None
        length = f"1/{paper().compute(SPLITS['50k']) / result.compute:.0f}".removesuffix("/1")
        cells = [model, length, recipe, f"{result.steps:,}", str(group[0].record.recipe["pad"])]
        errors = mean_and_spread([run.test_error_last for run in group])
        rows.append([*cells, errors, f"{mean(run.result.train_error for run in group):.2f}", str(len(group))])
    headings = ["net", "of the paper's compute", "recipe", "steps", "shifts", "test error %", "train error %", "n"]
    return markdown_table(headings, rows, text_columns=3)
