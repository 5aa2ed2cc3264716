"""Sentiment of texts with a tanh RNN: train a model, judge it, use it, look into it.

    fastrnn sentiment train --data aclImdb --out imdb.model
    fastrnn sentiment evaluate --data aclImdb --model imdb.model
    fastrnn sentiment predict --model imdb.model "I could not stop smiling."
    fastrnn sentiment explain --model imdb.model "Not bad at all." --html why.html

--data is a folder with one folder of .txt files for each label (aclImdb as it is unpacked), or a .csv, .tsv or .jsonl
file (.gz too) with a column for the text and one for the label; any labels. `--data imdb` downloads the Large Movie
Review Dataset. Lines that cannot be used are skipped, counted and reported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from ._common import UsageError, at_least, check_outputs, option_error, require, write_json
from ._plot import check_format
from ._sentiment_show import draw, show_evaluation, show_predictions

_POOLINGS = ("last", "mean", "max", "mean+max")
_FORMATS = {"html": (".html", ".htm"), "png": (".png",)}  # what explain writes, and the endings of its name, if any


def add_parser(commands: Any) -> None:
    """Adds the command and its five parts to the parser's commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        "sentiment", help="sentiment of texts: train, evaluate, predict, plot, explain", description=__doc__,
        formatter_class=raw,
    )  # fmt: skip
    parts = parser.add_subparsers(title="parts", required=True, metavar="PART", dest="part")

    train = parts.add_parser("train", help="train a model on labelled texts", description=__doc__, formatter_class=raw)
    _add_data(train, "train")
    train.add_argument("--out", type=Path, required=True, metavar="MODEL", help="the file to write")
    train.add_argument("--valid", type=Path, metavar="PATH", help="texts to choose the best epoch on; default: a share")
    train.add_argument("--checkpoint", type=Path, metavar="FILE", help="kept after every epoch; found, it is resumed")
    train.add_argument("--vectors", type=Path, metavar="FILE", help="pretrained vectors, GloVe's or word2vec's text")
    train.add_argument("--start", type=Path, metavar="MODEL", help="go on from this model's words, vectors and RNN")
    _add_settings(train)
    _add_device(train)
    train.set_defaults(run=_train)

    evaluate = parts.add_parser("evaluate", help="accuracy, precision, recall, F1, confusion matrix")
    _add_data(evaluate, "test")
    _add_model(evaluate)
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    evaluate.set_defaults(run=_evaluate)

    predict = parts.add_parser("predict", help="the label of new texts")
    _add_model(predict)
    predict.add_argument("text", nargs="+", help="one or more texts, or - for standard input, a text a line")
    predict.add_argument("--json", action="store_true", help="a JSON object a line")
    predict.set_defaults(run=_predict)

    plot = parts.add_parser("plot", help="loss and accuracy by epoch, confusion matrix")
    _add_model(plot)
    _add_data(plot, "test", required=False)
    plot.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="the picture to write")
    plot.set_defaults(run=_plot)

    explain = parts.add_parser("explain", help="which words speak for a label, and how")
    _add_model(explain)
    explain.add_argument("text", help="a text, or - for standard input")
    explain.add_argument("--html", type=Path, metavar="FILE", help="a page with the words coloured")
    explain.add_argument("--png", type=Path, metavar="FILE", help="the picture alone")
    explain.add_argument("--label", help="the label to explain; default: the predicted one")
    explain.add_argument("--method", choices=("integrated", "gradient"), default="integrated")
    explain.set_defaults(run=_explain)


def _add_data(parser: argparse.ArgumentParser, split: str, required: bool = True) -> None:
    parser.add_argument("--data", required=required, metavar="PATH", help="folder or file, or imdb for the download")
    parser.add_argument(
        "--split", default=split, help=f"the part of a folder or file that names its parts; '': all; default {split}"
    )
    parser.add_argument("--text-column", metavar="NAME", help="default: text, review, sentence ...")
    parser.add_argument("--label-column", metavar="NAME", help="default: label, sentiment, class ...")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL", help="what train wrote")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    words = "cuda: a GPU, through CuPy; a model does not depend on it; default cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=words)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from ..sentiment import Settings

    usual = Settings()
    group = parser.add_argument_group("settings")
    for name, words in (
        ("embedding_size", "numbers a word"), ("hidden_size", "units of the RNN"), ("layers", "of the RNN"),
        ("vocabulary_size", "the most frequent words"), ("longest", "words of a text that are read"),
        ("batch_size", "texts a step"), ("epochs", "at most"),
        ("runs", "trainings from the same beginning, averaged; for --start"),
    ):  # fmt: skip
        default = getattr(usual, name)
        group.add_argument(_flag(name), type=at_least(1), default=default, help=f"{words}; default {default}")
    for name, words in (
        ("dropout", "of the pooled state"), ("token_dropout", "of whole words"), ("rate", "Adam's learning rate"),
        ("clip_norm", "of the gradients' norm"), ("balance", "class weights: 0 none, 1 all classes alike"),
        ("held_out", "the share of the texts that chooses the epoch"),
    ):  # fmt: skip
        default = getattr(usual, name)
        group.add_argument(_flag(name), type=float, default=default, help=f"{words}; default {default:g}")
    group.add_argument("--pool", choices=_POOLINGS, default=usual.pool, help=f"default {usual.pool}")
    group.add_argument("--patience", type=at_least(1), help="epochs without a better one; default: no early stop")
    group.add_argument("--bidirectional", action="store_true", help="read from both ends")
    group.add_argument("--stop-words", action="store_true", help="remove stop words, but for negations")
    group.add_argument(
        "--drop-negations",
        dest="keep_negations",
        action="store_false",
        help="with --stop-words: no, not, never ... too",
    )
    group.add_argument("--seed", type=at_least(0), default=0)


def _check_device(device: str) -> None:
    from .._device import home_on

    try:
        home_on(device)
    except RuntimeError as error:
        raise UsageError(f"--{error}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train(args: argparse.Namespace) -> int:
    for module in ("rich", "sklearn", "safetensors"):
        require(module, "sentiment")
    _check_device(args.device)
    check_outputs(args, "out", "checkpoint", moved=True)
    if not (args.stop_words or args.keep_negations):
        raise UsageError("--drop-negations: expected --stop-words with it, got it alone")
    from ..sentiment import SentimentClassifier, Settings

    try:
        settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})
    except (TypeError, ValueError) as error:
        raise _named(args, error) from error
    data = _read(args, "data", args.split)
    print(f"{len(data)} texts: {_counts(data)}", file=sys.stderr)
    validation = _read(args, "valid", "valid") if args.valid else None
    start = _load(args.start, args.device, "--start") if args.start else None
    began = time.perf_counter()
    try:
        model = SentimentClassifier.train(
            data, settings, validation=validation, vectors=args.vectors, start=start, checkpoint=args.checkpoint,
            progress=True, device=args.device,
        )  # fmt: skip
        model.save(args.out)
    except (ValueError, OSError, FloatingPointError) as error:
        raise _named(args, error) from error
    best = f", the best epoch was {model.history.best}" if model.history.best else ""
    print(f"trained in {time.perf_counter() - began:.0f} s{best}; wrote {args.out}", file=sys.stderr)
    if model.report:
        print("on the held-out texts:" if validation is None else f"on {args.valid}:")
        show_evaluation(model.report)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    require("sklearn", "sentiment")
    require("rich", "sentiment")
    check_outputs(args, "json")
    model, data = _load(args.model, args.device), _read(args, "data", args.split)
    try:
        report = model.evaluate(data)
    except ValueError as error:
        raise _named(args, error) from error
    show_evaluation(report)
    if args.json:
        write_json(args.json, report)
    return 0


def _predict(args: argparse.Namespace) -> int:
    require("rich", "sentiment")
    model = _load(args.model, args.device)
    texts = [line.rstrip("\n") for line in _stdin()] if args.text == ["-"] else args.text
    usable = [text for text in texts if model.tokenizer(text)]
    for number, text in enumerate(texts, 1):
        if not model.tokenizer(text):
            print(f"text {number}: skipped, there is no word in {text[:40]!r}", file=sys.stderr)
    if not usable:
        raise UsageError("expected a text with words in it, got none")
    predictions = model.predict(usable)
    if args.json:
        for text, found in zip(usable, predictions, strict=True):
            print(json.dumps({"text": text, "label": found.label, "probabilities": found.probabilities}))
    else:
        show_predictions(usable, predictions)
    return 0


def _plot(args: argparse.Namespace) -> int:
    require("matplotlib", "sentiment")
    check_outputs(args, "out")
    check_format("--out", args.out)
    model = _load(args.model, args.device)
    try:
        report = model.evaluate(_read(args, "data", args.split)) if args.data else model.report
    except ValueError as error:
        raise _named(args, error) from error
    draw(model, report, args.data or "held-out texts", args.out)
    print(f"wrote {args.out}", file=sys.stderr)
    return 0


def _explain(args: argparse.Namespace) -> int:
    require("matplotlib", "sentiment")
    if not args.html and not args.png:
        raise UsageError("expected --html FILE or --png FILE, got none")
    check_outputs(args, *_FORMATS)
    for option, endings in _FORMATS.items():
        path = getattr(args, option)
        if path and path.suffix.lower() not in ("", *endings):
            raise UsageError(f"--{option}: expected a name that ends in {' or '.join(endings)}, got {path.name!r}")
    from ..sentiment.explain import METHODS, explain

    model = _load(args.model, args.device)
    text = _stdin().read() if args.text == "-" else args.text
    try:
        found = explain(model, text, args.label)
    except ValueError as error:
        raise _named(args, error) from error
    method = METHODS[0] if args.method == "integrated" else METHODS[1]
    for option in _FORMATS:
        path = getattr(args, option)
        if path:
            try:
                found.write(path, method, format=option)
            except (OSError, ValueError) as error:
                raise UsageError(f"--{option}: {error}") from error
            print(f"wrote {path}", file=sys.stderr)
    shares = found.shares(method)
    print(f"{found.label}  {found.probabilities[found.label]:.1%}")
    for i in sorted(range(len(shares)), key=lambda i: -abs(shares[i]))[:8]:
        print(f"  {shares[i]:+.3f}  {found.words[i]}")
    return 0


def _load(path: Path, device: str, option: str = "--model") -> Any:
    require("safetensors", "sentiment")
    _check_device(device)
    from ..sentiment import SentimentClassifier

    try:
        return SentimentClassifier.load(path, device)
    except (ValueError, OSError) as error:
        raise option_error(option, error) from error


def _named(args: argparse.Namespace, error: Exception) -> UsageError:
    """An error that begins with the name of an argument, as one of the option that it came from."""
    name, _, rest = str(error).partition(": ")
    name = {"validation": "valid"}.get(name, name)
    return UsageError(f"{_flag(name)}: {rest}" if hasattr(args, name) else str(error))


def _stdin() -> Any:
    """Standard input, read as the files of --data: bytes that are no text become U+FFFD."""
    stdin: Any = sys.stdin
    if hasattr(stdin, "reconfigure"):
        stdin.reconfigure(errors="replace")
    return stdin


def _read(args: argparse.Namespace, option: str, split: str) -> Any:
    """The texts that --data or --valid names; what was skipped goes to standard error."""
    from ..sentiment import download_imdb, read

    path = str(getattr(args, option))
    try:
        if path == "imdb" and not Path(path).exists():
            print("imdb: looking for ~/.cache/fastrnn/aclImdb, else downloading 80 MB", file=sys.stderr)
            path = str(download_imdb())
        data = read(path, split or None, text=args.text_column, label=args.label_column)
    except (ValueError, OSError) as error:
        raise option_error(f"--{option}", error) from error
    if data.skipped:
        print(f"{path}: {data.report()}", file=sys.stderr)
    return data


def _counts(data: Any) -> str:
    counts = data.counts()
    words = [f"{label} {count}" for label, count in list(counts.items())[:10]]
    return ", ".join(words) + (f" and {len(counts) - 10} more labels" if len(counts) > 10 else "")
