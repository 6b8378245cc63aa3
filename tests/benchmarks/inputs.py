"""Inputs of the benchmarks with a tiny model, in the layout of `benchmarks.emulators.questions`."""

import json
from pathlib import Path

from tests.tiny import save_llama, write_questions, write_text

ROWS = """
[[row]]
name = "uniform"
method = "uniform_drop"
ratio = 0.5
quick = true

[[row]]
name = "width-nf4"
method = "width_prune"
ratio = 0.6
packing = "nf4"
quick = true

[[row]]
name = "impossible"
method = "width_prune"
ratio = 0.01
quick = true
"""


def write_inputs(folder: Path, *, hidden: int = 32, blocks: int = 6) -> Path:
    """A model, a task and public text."""
    save_llama(folder / "model", hidden=hidden, blocks=blocks)
    (folder / "tasks" / "arc_easy").mkdir(parents=True)
    for count, part in ((40, "train"), (8, "choose"), (16, "test")):
        write_questions(folder / "tasks" / "arc_easy" / f"{part}.jsonl", count)
    for name in ("owner", "thief"):
        write_text(folder / f"{name}.jsonl", 400)
    return folder


def write_rows(path: Path, text: str = ROWS) -> Path:
    """A file of rows."""
    path.write_text(text, encoding="utf-8")
    return path


def records(out: Path) -> list[dict[str, object]]:
    """What a benchmark has recorded, lines that a kill cut off left out."""
    lines = (out / "records.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines if line.endswith(b"}")]
