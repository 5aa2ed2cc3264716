"""Text to tokens to numbers: the tokenizer, the vocabulary, pretrained vectors."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._backends.options import Array

UNKNOWN = "<unknown>"  # token 0 of every vocabulary
NUMBER = "<number>"  # stands for numbers of more than two digits

RULES = (1, 2)  # of the Tokenizer; 1: of models made before there were others

# Function words without sentiment of their own. Negations are listed apart: removing them turns meanings around.
_STOP_WORDS = (
    "a an the this that these those i me my we our us you your he him his she her it its they them their who whom "
    "which what where when how why is am are was were be been being have has had having do does did doing will would "
    "shall should can could may might must of in on at by for with from to into onto over under about as and or if "
    "then than so such there here also just s t d ll m re ve"
)
_NEGATIONS = (
    "no not nor none never nothing nobody neither nowhere cannot without n't don't doesn't didn't isn't aren't wasn't "
    "weren't haven't hasn't hadn't won't wouldn't can't couldn't shouldn't mustn't ain't"
)
STOP_WORDS, NEGATIONS = frozenset(_STOP_WORDS.split()), frozenset(_NEGATIONS.split())


class _Rules(NamedTuple):
    markup: re.Pattern[str]
    token: re.Pattern[str]
    digits: Callable[[str], int]  # of a number


@cache
def _rules(number: int) -> _Rules:
    """1: all between < and > is markup, a combining mark ends a word, the point of a number counts as a digit.

    2: markup begins as tags and comments of HTML do; marks belong to the letter before them (vowels of Devanagari,
    accents on their own), and so do joiners between letters.
    """
    markup, word = r"<[^<>]{0,200}>", r"[^\W\d_]+"
    digits: Callable[[str], int] = len
    if number == 2:
        places = chain(range(0x300, 0x1F000), range(0xE0100, 0xE01F0))  # where Unicode has its marks
        marks = "".join(chr(place) for place in places if unicodedata.category(chr(place)).startswith("M"))
        markup = r"<(?=!--|[/!?]?[a-zA-Z])[^<>]{0,200}>"
        word = rf"[^\W\d_]+(?:(?=[^\0-\xff])(?:[{marks}]+[^\W\d_]*|[\u200c\u200d]+[^\W\d_]+))*"  # (?=): for speed
        digits = _digits
    return _Rules(re.compile(markup), re.compile(rf"{word}(?:['’]{word})*|\d+(?:[.,]\d+)*"), digits)


def _digits(number: str) -> int:
    return sum(map(str.isdigit, number))


class Tokenizer:
    """Lower-case words and numbers; markup and punctuation go, apostrophes inside a word stay.

    Arguments:
        lower: lower case.
        stop_words: True removes STOP_WORDS.
        keep_negations: False removes NEGATIONS too, where stop words are removed.
        rules: of RULES, the newest by default.

    Numbers of up to two digits are tokens as they are ("7" of "7/10", "7.5"), longer ones become "<number>".
    """

    def __init__(
        self, *, lower: bool = True, stop_words: bool = False, keep_negations: bool = True, rules: int = RULES[-1]
    ) -> None:
        if rules not in RULES:
            raise ValueError(f"rules: expected one of {', '.join(map(str, RULES))}, got {rules!r}")
        self.lower, self.stop_words, self.keep_negations = bool(lower), bool(stop_words), bool(keep_negations)
        self.rules = int(rules)
        self._removed = frozenset[str]()
        if self.stop_words:
            self._removed = STOP_WORDS if self.keep_negations else STOP_WORDS | NEGATIONS

    def __call__(self, text: str) -> list[str]:
        """The tokens of one text; empty for a text without words and numbers."""
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        rules = _rules(self.rules)
        if "<" in text:
            text = rules.markup.sub(" ", text)
        if "&" in text:
            text = html.unescape(text)
        if self.lower:
            text = text.lower()
        tokens = rules.token.findall(text.replace("’", "'"))
        tokens = [NUMBER if token[0].isdigit() and rules.digits(token) > 2 else token for token in tokens]
        if self._removed:
            tokens = [token for token in tokens if token.lower() not in self._removed]
        return tokens

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        return {name: getattr(self, name) for name in ("lower", "stop_words", "keep_negations", "rules")}


class Vocabulary:
    """The words, most frequent first; word k has the number k, and number 0 stands for all others."""

    def __init__(self, words: Sequence[str]) -> None:
        if not words or words[0] != UNKNOWN or len(set(words)) != len(words):
            raise ValueError(f"words: expected {UNKNOWN!r} and then words without repetition")
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(words)}

    @classmethod
    def build(cls, texts: Iterable[Iterable[str]], size: int = 20_000, at_least: int = 2) -> Vocabulary:
        """The `size` most frequent tokens that occur at least so often; equals in alphabetical order."""
        counts = Counter[str]()
        for tokens in texts:
            counts.update(tokens)
        counts.pop(UNKNOWN, None)
        frequent = sorted(
            (item for item in counts.items() if item[1] >= at_least), key=lambda item: (-item[1], item[0])
        )
        return cls([UNKNOWN, *[word for word, _ in frequent[: max(size - 1, 0)]]])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._numbers

    def numbers(self, tokens: Sequence[str]) -> Array:
        """(T) int32."""
        get = self._numbers.get
        return np.fromiter((get(token, 0) for token in tokens), np.int32, len(tokens))


def clip_length(tokens: Array, longest: int) -> Array:
    """At most `longest` tokens: the first quarter and the rest from the end, where a text's verdict mostly stands."""
    if len(tokens) <= longest:
        return tokens
    head = longest // 4
    return np.concatenate([tokens[:head], tokens[len(tokens) - (longest - head) :]])


def load_vectors(path: Any, vocabulary: Vocabulary, weight: Array) -> int:
    """Writes pretrained vectors into weight (V, E), in place; the number of words found.

    The file is text, a word and E numbers a line, as GloVe has it, with or without the line "count dimension" in front
    that word2vec writes; .gz too. Words that it lacks keep their row. Raises FileNotFoundError, and ValueError with the
    line's number for another dimension or what is no number.
    """
    from .data import open_text

    found, (_, E) = 0, weight.shape
    with open_text(Path(path)) as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip().split(" ")
            if number == 1 and len(fields) == 2 and fields[0].isdigit() and fields[1] == str(E) and E > 1:
                continue  # word2vec's first line: how many, of which dimension
            word = " ".join(fields[: len(fields) - E])
            index = vocabulary._numbers.get(word)
            if len(fields) <= E:
                raise ValueError(
                    f"{path}, line {number}: expected a word and {E} numbers, got {len(fields) - 1} numbers"
                )
            if index:
                try:
                    weight[index] = [float(value) for value in fields[-E:]]
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: expected {E} numbers, {error}") from None
                found += 1
    return found


def encode(tokenizer: Tokenizer, vocabulary: Vocabulary, texts: Iterable[str], longest: int) -> list[Array]:
    """Each text as (T) int32, at most `longest` of them."""
    return [clip_length(vocabulary.numbers(tokenizer(text)), longest) for text in texts]
