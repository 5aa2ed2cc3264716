"""What `fastrnn sentiment` prints and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._common import UsageError, print_table, require


def show_evaluation(report: Mapping[str, Any]) -> None:
    """Accuracy, a line for each label, the confusion matrix."""
    console, table_module, plain = _console(), require("rich.table"), require("rich.text").Text  # no markup in labels
    console.print(
        f"{report['texts']} texts: accuracy {report['accuracy']:.4f}, macro F1 {report['macro_f1']:.4f}",
        highlight=False,
    )
    table = table_module.Table("label", box=None, padding=(0, 2))
    for name in ("precision", "recall", "F1", "texts"):
        table.add_column(name, justify="right")
    for label, row in report["labels"].items():
        shares = [f"{row[name]:.4f}" for name in ("precision", "recall", "f1")]
        table.add_row(plain(label), *shares, f"{row['texts']:.0f}")
    macro = [f"{report[f'macro_{name}']:.4f}" for name in ("precision", "recall", "f1")]
    table.add_row("macro", *macro, str(report["texts"]), style="bold")
    print_table(table, console)
    labels = list(report["labels"])
    if len(labels) <= 12:
        matrix = table_module.Table("truth \\ found", box=None, padding=(0, 2))
        for label in labels:
            matrix.add_column(plain(label), justify="right")
        for label, row in zip(labels, report["confusion"], strict=True):
            matrix.add_row(plain(label), *map(str, row))
        print_table(matrix, console)


def show_predictions(texts: Sequence[str], predictions: Sequence[Any]) -> None:
    """A line for each text: label, its probability, the text's beginning."""
    width = max(len(found.label) for found in predictions)
    for text, found in zip(texts, predictions, strict=True):
        shown = text if len(text) <= 80 else text[:77] + "..."
        print(f"{found.label:{width}s}  {found.probabilities[found.label]:6.1%}  {shown}")


def draw(model: Any, report: Mapping[str, Any], name: str, path: Path) -> None:
    """Loss and accuracy by epoch, and the confusion matrix of report where there is one."""
    figure_module = require("matplotlib.figure", "sentiment")
    records = model.history.records
    figure = figure_module.Figure(figsize=(13, 4.2), layout="constrained")
    loss, score, matrix = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    line: dict[str, Any] = {"marker": "o", "markersize": 4}
    loss.plot(epochs, [record["loss"] for record in records], label="training, with dropout", **line)
    if records and "validation_loss" in records[0]:
        loss.plot(epochs, [record["validation_loss"] for record in records], label="held out", **line)
        score.plot(epochs, [record["score"] for record in records], color="#00798c", **line)
        score.axvline(model.history.best, color="0.7", linewidth=1, linestyle=":")
    loss.set_title("cross-entropy", loc="left")
    score.set_title("mean of accuracy and macro F1, held out", loc="left")
    loss.legend(frameon=False)
    for axes in (loss, score):
        axes.set(xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    if report:
        _confusion(matrix, report, name)
    else:
        matrix.set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: {error}") from error


def _confusion(axes: Any, report: Mapping[str, Any], name: str) -> None:
    """Shares of each row in colour, counts in figures."""
    labels, rows = list(report["labels"]), report["confusion"]
    shares = [[count / max(sum(row), 1) for count in row] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set_xticks(places, labels, parse_math=False)
    axes.set_yticks(places, labels, parse_math=False)
    axes.set(xlabel="found", ylabel="truth")
    if len(labels) <= 12:
        for i in places:
            for j in places:
                color = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, f"{rows[i][j]}\n{shares[i][j]:.1%}", ha="center", va="center", color=color)
    title = f"{Path(name).name}: accuracy {report['accuracy']:.1%}\nmacro F1 {report['macro_f1']:.3f}"
    axes.set_title(title, loc="left", parse_math=False)


def _console() -> Any:
    console = require("rich.console", "sentiment").Console()
    return console if console.is_terminal else require("rich.console").Console(width=120)
