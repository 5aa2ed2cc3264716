"""Every block of docs/tutorial.md runs as it stands, in order, on a small folder named imdb; its figures hold."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from test_sentiment import invented

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from fastrnn import cli

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
NAMED = {"about 0.9": lambda value: 0.86 < value < 0.97, "below 0.01": lambda value: value < 0.01}


@pytest.mark.slow
def test_every_block_of_the_tutorial_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    if not TUTORIAL.exists():
        pytest.skip("the tests were copied without docs/")
    monkeypatch.chdir(tmp_path)
    for split, seed in (("train", 0), ("test", 1)):
        data = invented(200, seed=seed)
        for n, (text, label) in enumerate(zip(data.texts, data.labels, strict=True)):
            path = tmp_path / "imdb" / split / label / f"{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```(\w+)\n(.*?)```", TUTORIAL.read_text("utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python"] * 3 + ["sh"] + ["python"] * 2
    for kind, block in blocks:
        capsys.readouterr()
        if kind == "sh":
            for line in block.splitlines():
                program, *words = shlex.split(line)
                assert program == "fastrnn"
                assert cli.main(words) == 0, line
            continue
        if "import torch" in block:
            pytest.importorskip("torch")
        exec(compile(block, str(TUTORIAL), "exec"), names)
        for words, holds in NAMED.items():
            if f"# {words}" in block:
                assert holds(float(capsys.readouterr().out)), words
    for name in ("imdb.model", "imdb.png", "why.html", "why.png", "wave.safetensors"):
        assert (tmp_path / name).stat().st_size > 1000
    assert float(names["loss"].detach()) < 1.0
