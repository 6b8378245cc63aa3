"""The inputs as files: the model, the questions of every task, public text for owner and thief.

    model/                     the full model
    owner.jsonl, thief.jsonl   public text: for building and distilling, and for healing
    tasks/<task>/              train.jsonl, choose.jsonl, test.jsonl: questions

Made below a folder once. One that holds these files needs nothing else: tests bring tiny ones.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.inputs.tasks import SPLITS, Part, passages, questions, write_rows
from examples.inputs.wheels import MODEL, open_archive, prepare_model

from offsite.emulator.questions import Question, read_questions
from offsite.secure.errors import ConfigError

OWNER_TEXT = "owner.jsonl"
THIEF_TEXT = "thief.jsonl"


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """Where the parts of a task lie."""

    train: Path
    choose: Path
    test: Path

    @classmethod
    def of(cls, folder: Path, task: str) -> "TaskFiles":
        """Below the folder of the inputs."""
        parts = (folder / "tasks" / task / f"{part.value}.jsonl" for part in Part)
        return cls(*parts)

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return self.train.exists() and self.choose.exists() and self.test.exists()


def prepare(folder: Path, tasks: Sequence[str]) -> None:
    """Downloads and writes what is missing.

    Raises:
        ConfigError: a task is not there and not one that can be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not TaskFiles.of(folder, task).complete]
    if unknown := sorted(set(missing) - set(SPLITS)):
        raise ConfigError(f"no task {', '.join(unknown)}; known: {', '.join(sorted(SPLITS))}")
    if not (folder / MODEL / "config.json").exists():
        prepare_model(folder)
    texts = [folder / OWNER_TEXT, folder / THIEF_TEXT]
    if not missing and all(path.exists() for path in texts):
        return
    with open_archive(folder) as archive:
        different = {str(row["text"]): row for row in passages(archive)}
        for start, path in enumerate(texts):
            write_rows(path, list(different.values())[start::2])
        for task in missing:
            files = TaskFiles.of(folder, task)
            write_rows(files.train, questions(archive, task, Part.TRAIN))
            write_rows(files.choose, questions(archive, task, Part.CHOOSE))
            write_rows(files.test, questions(archive, task, Part.TEST))


def asked(path: Path, seed: int, count: int) -> list[Question]:
    """`count` questions of a file, or all, chosen by the seed."""
    every = read_questions(path)
    return random.Random(seed).sample(every, min(count, len(every)))
