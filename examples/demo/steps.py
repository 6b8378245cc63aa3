"""The steps of a campaign, each by the command that a person would type; processes of their own."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.demo.inputs import Inputs
from examples.demo.processes import Child, command, free_port, output, wait_for_all


def _threads() -> int:
    return os.cpu_count() or 1


def _coordinator(state: Path, verb: str, *arguments: str) -> list[str]:
    return command("coordinator", verb, "--state", str(state), *arguments)


def release(state: Path, inputs: Inputs, settings: Mapping[str, str]) -> None:
    """The owner's state folder, and the signed release in it."""
    settings = dict(settings) | {
        "model.path": str(inputs.model.resolve()),
        "gate.questions": str(inputs.gate.resolve()),
        "emulator.calibration": str(inputs.public_text.resolve()),
        "server.listen": f"127.0.0.1:{free_port()}",
    }
    flags = [word for item in settings.items() for word in ("--set", "=".join(item))]
    output(_coordinator(state, "init", *flags), _threads())
    output(_coordinator(state, "emulate"), _threads())


def campaign(state: Path, inputs: Inputs, logs: Path, flags: Sequence[str]) -> None:
    """A coordinator and an edge for each part of the data, to the campaign's end.

    Args:
        logs: a folder for what they print and for the edges' state folders.
        flags: of every `edge-client join`.
    """
    tokens = [
        json.loads(output(_coordinator(state, "invite", f"edge-{i}", "--json"), 1))["token"]
        for i in range(len(inputs.edges))
    ]
    children = [Child("coordinator", _coordinator(state, "serve"), logs / "serve.log", _threads())]
    threads = max(1, _threads() // len(tokens))
    try:
        for i, (token, data) in enumerate(zip(tokens, inputs.edges, strict=True)):
            arguments = ["join", token, "--data", str(data), "--state", str(logs / f"edge-{i}")]
            join = command("edge-client", *arguments, *flags)
            children.append(Child(f"edge-{i}", join, logs / f"edge-{i}.log", threads))
        wait_for_all(children)
    finally:
        for child in children:
            child.stop()


def audit(logs: Path, edges: int) -> list[dict[str, object]]:
    """What each edge's ledger says it spent, computed again."""
    ledgers = [str(logs / f"edge-{i}" / "ledger") for i in range(edges)]
    found = [
        output(command("privacy-audit", "ledger", path, "--json"), _threads()) for path in ledgers
    ]
    return [dict(json.loads(document)) for document in found]


def evaluate(state: Path, inputs: Inputs, questions: int) -> dict[str, dict[str, float]]:
    """The table, on questions that served no other purpose."""
    arguments = ("--questions", str(inputs.test), "--limit", str(questions), "--json")
    document = json.loads(output(_coordinator(state, "evaluate", *arguments), _threads()))
    return dict(document)


def export(state: Path, folder: Path) -> dict[str, object]:
    """PEFT adapter and merged checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ("--out", str(folder), "--json")
    return dict(json.loads(output(_coordinator(state, "export", *arguments), _threads())))
