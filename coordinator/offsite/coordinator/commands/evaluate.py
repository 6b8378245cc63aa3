"""`coordinator evaluate`: the four rows, on the gate or on questions of the owner's choice."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text
from transformers import PreTrainedModel

from offsite.coordinator.evaluation import Questions, evaluate
from offsite.coordinator.owner_inputs import (
    DTYPES,
    adapter_of,
    final_form,
    load_model,
    load_questions,
)
from offsite.coordinator.release import stored_release
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.coordinator.workspace_campaign import result_of
from offsite.emulator.base_model import load_tokenizer
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError


def evaluate_table(
    root: Path, overrides: Sequence[str], questions: Path | None, limit: int, terminal: Terminal
) -> None:
    """Scores full model, emulator, tuned emulator and plug-in."""
    with open_workspace(root, overrides, exclusive=True) as workspace:
        config = workspace.config
        path = questions or config.gate.questions
        if path is None:
            raise ConfigError("no questions: give --questions FILE or set gate.questions")
        kind = Questions.GATE if _is_gate(path, config.gate.questions) else Questions.UNSEEN
        asked = load_questions(path, limit)
        bundle = stored_release(workspace)
        result = result_of(workspace, bundle)
        emulator = bundle.load_emulator(DTYPES[config.model.dtype])
        assert isinstance(emulator, PreTrainedModel)
        model = load_model(config, bundle)
        form = final_form(config, bundle, model, result)
        started = time.monotonic()
        with terminal.progress("evaluating") as report:
            found = evaluate(
                model,
                emulator,
                load_tokenizer(config.model.path),
                adapter_of(bundle),
                result.adapter,
                asked,
                in_full=form.tensors,
                batch_tokens=config.gate.batch_tokens,
                report=report,
            )
        document = found.to_json() | {
            "questions": str(path),
            "questions_are_gate": kind is Questions.GATE,
            "released": result.released,
            "corrected": form.is_corrected,
            "reason": result.reason,
            "bundle_bytes": bundle.manifest.bundle_bytes,
            "update_bytes": _update_bytes(workspace, result.campaign_id),
            "evaluation_seconds": round(time.monotonic() - started, 1),
        }
    reason = result.reason + ("; corrected at plug-in" if form.is_corrected else "")
    terminal.result(Group(found.to_table(kind), Text(reason)), document)


def _is_gate(path: Path, gate: Path | None) -> bool:
    return gate is not None and path.resolve() == gate.resolve()


def _update_bytes(workspace: Workspace, campaign_id: int) -> int:
    """The largest update of the campaign, as it travelled."""
    rounds = workspace.store.campaigns.rounds(campaign_id)
    return int(max((row.metrics.get("update_bytes", 0.0) for row in rounds), default=0.0))
