"""Reading labelled texts: aclImdb folders, csv, tsv and jsonl files (.gz too), and the download of IMDB.

A line that cannot be used is skipped and reported with its number; everything else is read.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import tarfile
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"

TEXT_NAMES = ("text", "review", "sentence", "content", "comment", "tweet", "phrase")
LABEL_NAMES = ("label", "sentiment", "class", "target", "polarity", "category")
SPLIT_NAMES = ("split", "fold", "set")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 10_000_000  # characters


@dataclass
class Texts:
    """Texts and their labels, and what was skipped: (line number or file name, reason)."""

    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, where: str, text: Any, label: Any) -> None:
        """Takes a text with words in it and a label that is not empty; else remembers why not."""
        label = "" if label is None or isinstance(label, (dict, list)) else str(label).strip()
        if not isinstance(text, str) or not text.strip():
            self.skipped.append((where, "no text"))
        elif not label:
            self.skipped.append((where, "no label"))
        else:
            self.texts.append(text)
            self.labels.append(label)

    def counts(self) -> dict[str, int]:
        """How often each label occurs, by name."""
        return dict(sorted(Counter(self.labels).items()))

    def report(self, shown: int = 5) -> str:
        """What was skipped, in words; empty where nothing was."""
        if not self.skipped:
            return ""
        words = "; ".join(f"{where}: {reason}" for where, reason in self.skipped[:shown])
        more = f"; and {len(self.skipped) - shown} more" if len(self.skipped) > shown else ""
        return f"skipped {len(self.skipped)} of {len(self.skipped) + len(self)}: {words}{more}"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file in UTF-8, .gz or not; bytes that are not UTF-8 become U+FFFD. FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            yield cast(TextIO, file)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole file, got a damaged one: {error}") from None


def read(path: Any, split: str | None = None, *, text: str | None = None, label: str | None = None) -> Texts:
    """All labelled texts at path.

    path: a folder as aclImdb has it, <label>/*.txt, or with split "train" or "test" <split>/<label>/*.txt; or a .csv,
    .tsv or .jsonl file, .gz too. Its first line names the columns; text and label are found by the usual names, or
    named here. split: only the lines whose column "split" says so, where there is one, in capitals or not.

    Raises FileNotFoundError, ValueError for a file without such columns, and where that of the split has other words on
    every line; lines it cannot use are in .skipped.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, split)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if ending in (".jsonl", ".ndjson"):
        return _read_jsonl(path, split, text, label)
    if ending in _DELIMITERS:
        return _read_table(path, _DELIMITERS[ending], split, text, label)
    raise ValueError(f"{path}: expected a folder, or a file that ends in .csv, .tsv or .jsonl (.gz too)")


def has_split(path: Any, split: str) -> bool:
    """True where path is a folder that keeps this split apart."""
    return bool((Path(path) / split).is_dir())


def _read_folder(path: Path, split: str | None) -> Texts:
    root = path / split if split and (path / split).is_dir() else path
    if split and root == path and any((path / name).is_dir() for name in ("train", "test")):
        raise FileNotFoundError(f"{path}: there is no folder {split!r} in it")
    if not split and (path / "train").is_dir():
        root = path / "train"
    found = Texts()
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name != "unsup"]
    for folder in folders:
        for file in sorted(folder.glob("*.txt")):
            try:
                content = file.read_bytes().decode("utf-8", "replace")
            except OSError as error:
                found.skipped.append((f"{folder.name}/{file.name}", str(error)))
                continue
            found.add(f"{folder.name}/{file.name}", content, folder.name)
    if not len(found) and not found.skipped:
        raise ValueError(f"{root}: expected folders of .txt files, one for each label, got none")
    return found


def _find(names: list[str], usual: tuple[str, ...]) -> str | None:
    lowered = {name.strip().lower(): name for name in reversed(names)}
    return next((lowered[name.lower()] for name in usual if name.lower() in lowered), None)


def _column(names: list[str], asked: str | None, usual: tuple[str, ...], path: Path, what: str) -> str:
    found = _find(names, (asked,) if asked else usual)
    if found is not None:
        return found
    raise ValueError(
        f"{path}: expected a column {' or '.join(map(repr, [asked] if asked else usual[:3]))} for the {what}, got the "
        f"columns {', '.join(map(repr, names[:10]))}"
    )


class _Split:
    """Which lines of a file are of the split that was asked for."""

    def __init__(self, asked: str | None) -> None:
        self.asked, self.taken, self.others = asked, 0, Counter[tuple[str, str]]()

    def takes(self, column: str | None, word: Any) -> bool:
        """True where the column of the split has this word; where there is none, word is None: True too."""
        if self.asked is None or word is None or str(word).strip().lower() == self.asked.strip().lower():
            self.taken += 1
            return True
        self.others[str(column), str(word).strip()] += 1
        return False

    def check(self, path: Path) -> None:
        """ValueError where all lines are of others."""
        if self.others and not self.taken:
            found = [pair for pair, _ in self.others.most_common(5)]
            words = ", ".join(repr(word[:40]) for _, word in found)
            raise ValueError(f"{path}: expected lines whose column {found[0][0]!r} says {self.asked!r}, got {words}")


def _read_table(path: Path, delimiter: str, split: str | None, text: str | None, label: str | None) -> Texts:
    found, part = Texts(), _Split(split)
    csv.field_size_limit(_LONGEST_FIELD)
    with open_text(path) as file:
        quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(_without_nul(file), delimiter=delimiter, quoting=quoting)
        names = next(rows, None)
        if not names:
            raise ValueError(f"{path}: expected a first line with the names of the columns, got an empty file")
        text_at = names.index(_column(names, text, TEXT_NAMES, path, "text"))
        label_at = names.index(_column(names, label, LABEL_NAMES, path, "label"))
        column = _find(names, SPLIT_NAMES)
        split_at = None if column is None else names.index(column)
        while True:
            line = f"line {rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                found.skipped.append((line, str(error)))
                continue
            if row is None:
                part.check(path)
                return found
            if len(row) != len(names):
                if row:
                    found.skipped.append((line, f"{len(row)} columns instead of {len(names)}"))
            elif part.takes(column, None if split_at is None else row[split_at]):
                found.add(line, row[text_at], row[label_at])


def _without_nul(file: TextIO) -> Iterator[str]:
    return (line.replace("\0", "") for line in file)


def _read_jsonl(path: Path, split: str | None, text: str | None, label: str | None) -> Texts:
    found, part, text_name, label_name = Texts(), _Split(split), text, label
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                found.skipped.append((f"line {number}", f"no JSON: {error}"))
                continue
            if not isinstance(row, dict):
                found.skipped.append((f"line {number}", "no JSON object"))
                continue
            if text_name not in row or label_name not in row:
                try:
                    text_name = _column(list(row), text, TEXT_NAMES, path, "text")
                    label_name = _column(list(row), label, LABEL_NAMES, path, "label")
                except ValueError:
                    found.skipped.append((f"line {number}", f"no text or label among {', '.join(list(row)[:5])}"))
                    continue
            column = _find(list(row), SPLIT_NAMES)
            if part.takes(column, None if column is None else row[column]):
                found.add(f"line {number}", row[text_name], row[label_name])
    part.check(path)
    return found


def hold_out(data: Texts, share: float, seed: int) -> tuple[Texts, Texts]:
    """(the rest, the held-out part): this share of every label's texts, drawn with the seed, at least one for each."""
    rng, held = np.random.default_rng(seed), set[int]()
    labels = np.asarray(data.labels)
    for label in sorted(set(data.labels)):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.update(rng.permutation(rows)[:count].tolist() if len(rows) > 1 else [])
    parts = Texts(skipped=data.skipped), Texts()
    for row, (text, label) in enumerate(zip(data.texts, data.labels, strict=True)):
        part = parts[row in held]
        part.texts.append(text)
        part.labels.append(label)
    return parts


def download_imdb(folder: Any = None, *, url: str = IMDB_URL, sha256: str = IMDB_SHA256) -> Path:
    """The folder aclImdb, downloaded and unpacked into folder (default ~/.cache/fastrnn) unless it is there.

    Large Movie Review Dataset (Maas et al. 2011), 80 MB, 25,000 + 25,000 reviews. Nothing is unpacked unless the
    checksum is right: ValueError; OSError where there is no network.
    """
    root = Path(folder) if folder is not None else Path.home() / ".cache" / "fastrnn"
    target = root / "aclImdb"
    if (target / "test" / "pos").is_dir() and (target / ".complete").exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    archive = root / "aclImdb_v1.tar.gz"
    digest = hashlib.sha256()
    partial = archive.with_suffix(".part")
    with urllib.request.urlopen(url, timeout=60) as source, partial.open("wb") as file:
        while block := source.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != sha256:
        partial.unlink()
        raise ValueError(f"{url}: expected the SHA-256 checksum {sha256}, got {digest.hexdigest()}")
    os.replace(partial, archive)
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile() or member.isdir()]
        if hasattr(tarfile, "data_filter"):
            tar.extractall(root, members, filter="data")
        else:
            tar.extractall(root, [m for m in members if ".." not in m.name and not m.name.startswith("/")])
    (target / ".complete").touch()
    archive.unlink()
    return target
