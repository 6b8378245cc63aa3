"""The demonstration's inputs.

Who gets what:
    owner    the model, BoolQ's training passages as public text, ARC-Easy's validation split
             as gate, its test split for the closing table
    edges    one half each of ARC-Easy's training split, as prompt and completion
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from examples.inputs.tasks import Part, as_completion, passages, questions, write_rows
from examples.inputs.wheels import open_archive, prepare_model

TASK = "arc_easy"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files of the demonstration."""

    model: Path
    public_text: Path
    gate: Path
    test: Path
    edges: tuple[Path, ...]


def prepare(folder: Path, seed: int, edges: int = 2) -> Inputs:
    """Downloads and converts what is missing below `folder`."""
    shuffled = folder / f"seed-{seed}"
    shuffled.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(
        model=prepare_model(folder),
        public_text=folder / "public.jsonl",
        gate=shuffled / "gate.jsonl",
        test=shuffled / "test.jsonl",
        edges=tuple(shuffled / f"edge-{i}.jsonl" for i in range(edges)),
    )
    with open_archive(folder) as archive:
        write_rows(inputs.public_text, passages(archive))
        write_rows(inputs.gate, questions(archive, TASK, Part.CHOOSE, seed))
        write_rows(inputs.test, questions(archive, TASK, Part.TEST, seed))
        _split_training(archive, inputs.edges, seed)
    return inputs


def _split_training(archive: zipfile.ZipFile, edges: tuple[Path, ...], seed: int) -> None:
    rows = questions(archive, TASK, Part.TRAIN, seed)
    for index, path in enumerate(edges):
        write_rows(path, map(as_completion, rows[index :: len(edges)]))
