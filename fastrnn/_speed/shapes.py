"""The shapes that are timed, in one place, and how a user names them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of one problem, in the order in which tables and options give them: batch, time, input, hidden."""

    B: int
    T: int
    I: int
    H: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    def flops(self, training: bool = False) -> float:
        """Multiplications and additions: 2 T B H (I + H) forward, three times that with BPTT. tanh is not counted."""
        return (6.0 if training else 2.0) * self.T * self.B * self.H * (self.I + self.H)


# B, T, I, H: the shapes on which published RNN libraries are compared
GRID = (
    Shape(1, 128, 64, 64), Shape(1, 128, 256, 256), Shape(1, 512, 512, 512), Shape(1, 1024, 1024, 1024),
    Shape(8, 128, 128, 128), Shape(16, 256, 256, 256), Shape(32, 1000, 64, 64), Shape(32, 128, 256, 256),
    Shape(64, 100, 128, 128), Shape(64, 400, 64, 128), Shape(64, 100, 512, 512), Shape(128, 50, 1024, 1024),
    Shape(256, 64, 256, 256),
)  # fmt: skip
# No size is round: B 1, 2, 3, 5, 7, 20, 50; I 1, 3, 10, 40; H 96, 100, 200, 300
ODD = (
    Shape(1, 200, 1, 96), Shape(1, 100, 40, 200), Shape(1, 100, 3, 300), Shape(2, 128, 10, 100),
    Shape(3, 100, 10, 100), Shape(5, 100, 40, 200), Shape(7, 64, 3, 96), Shape(7, 128, 40, 100),
    Shape(20, 100, 40, 200), Shape(20, 200, 10, 300), Shape(50, 100, 1, 96), Shape(50, 60, 3, 300),
)  # fmt: skip
QUICK = (Shape(1, 128, 64, 64), Shape(3, 100, 10, 100), Shape(8, 128, 128, 128), Shape(20, 100, 40, 200))
# One step at a time, as in streaming
STEPS = (
    Shape(1, 1, 64, 64), Shape(1, 1, 256, 256), Shape(1, 1, 1024, 1024), Shape(1, 1, 10, 100),
    Shape(8, 1, 128, 128), Shape(64, 1, 256, 256),
)  # fmt: skip
# What takes about a minute on two cores: one sequence of 1024 steps is slow in the NumPy reference, BPTT above all
DEFAULT = (*(shape for shape in GRID if shape != Shape(1, 1024, 1024, 1024)), *ODD)
# One size at a time, for the lines of cost against T, B and H
SCALING = (
    Shape(16, 16, 128, 128), Shape(16, 64, 128, 128), Shape(16, 256, 128, 128), Shape(16, 1024, 128, 128),
    Shape(1, 64, 128, 128), Shape(4, 64, 128, 128), Shape(64, 64, 128, 128), Shape(256, 64, 128, 128),
    Shape(16, 64, 32, 32), Shape(16, 64, 64, 64), Shape(16, 64, 256, 256), Shape(16, 64, 512, 512),
)  # fmt: skip
SETS = {"default": DEFAULT, "grid": GRID, "odd": ODD, "quick": QUICK, "scaling": SCALING}


def parse(text: str) -> list[Shape]:
    """The shapes in a comma-separated list of sets and of BxTxIxH, each once. ValueError for anything else."""
    shapes: list[Shape] = []
    for word in text.split(","):
        word = word.strip()
        if word in SETS:
            shapes += SETS[word]
        elif re.fullmatch(r"[1-9]\d{0,9}(x[1-9]\d{0,9}){3}", word, re.ASCII):
            shapes.append(Shape(*map(int, word.split("x"))))
        else:
            raise ValueError(f"expected {', '.join(SETS)} or BxTxIxH, each at least 1, as in 8x128x64x64; got {word!r}")
    return list(dict.fromkeys(shapes))
