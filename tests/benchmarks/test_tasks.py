"""What is learnt, chosen on and tested never overlaps, whatever the seed."""

import gzip
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from examples.inputs import tasks
from examples.inputs.tasks import SPLITS, TASKS, Part, questions


def pack(path: Path, task: str, splits: Sequence[tuple[str, int]], key: str) -> zipfile.ZipFile:
    """An archive with that many documents in each split, two requests each."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in splits:
            lines = [
                json.dumps({"doc": document(split, number, key)}) + "\n"
                for number in range(count)
                for _ in range(2)
            ]
            packed = gzip.compress("".join(lines).encode())
            archive.writestr(f"{TASKS}/{task}/{split}/requests.jsonl.gz", packed)
    return zipfile.ZipFile(path)


def document(split: str, number: int, key: str) -> dict[str, object]:
    """Every second one asks the same as the one before, with other choices."""
    choices = [f"{split} {number} yes", f"{split} {number} no"]
    query = f"{split} {number // 2}?"
    return {key: number, "query": query, "choices": choices, "gold": 0, "label": 0}


@pytest.mark.parametrize(("task", "key"), [("arc_easy", "id"), ("piqa", "index")])
def test_the_parts_of_a_task_are_disjoint_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, key: str
) -> None:
    monkeypatch.setattr(tasks, "CHOOSING_QUESTIONS", 5)
    splits = SPLITS[task]
    sizes = [(splits.train, 20), (splits.test, 8)]
    if splits.choose is not None:
        sizes.append((splits.choose, 6))
    archive = pack(tmp_path / "wheel", task, sizes, key)
    for seed in (0, 1):
        parts = {part: questions(archive, task, part, seed) for part in Part}
        choices = [str(row["choices"]) for rows in parts.values() for row in rows]
        assert len(set(choices)) == len(choices) == sum(count for _, count in sizes)
        sets = {part: {str(row["choices"]) for row in rows} for part, rows in parts.items()}
        if seed == 0:
            before = sets
        assert sets == before
    assert all(split in str(row) for row in parts[Part.TEST] for split in [splits.test])
