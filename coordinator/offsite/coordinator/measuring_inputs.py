"""What emulators are built from and measured on: public text, questions, a stand-in for the task.

Public text is read once and parted: the last `leak.text_tokens` tokens, a quarter at most, are held
out to measure perplexity on; a thief heals on the rest, and the owner distils on it. Rows are as
long as they can be, 512 tokens, of a short text shorter.

Rules: no data owner's data is here; what judges is never what was learnt (held-out rows, and a
stand-in that is not the gate).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.owner_inputs import load_questions
from offsite.emulator.calibration import calibration_batches
from offsite.emulator.methods.method import MethodOptions, make_method
from offsite.emulator.questions import Question
from offsite.emulator.training.tokens import Encoding, Example, question_examples
from offsite.secure.errors import ConfigError

ROW_TOKENS = (512, 256, 128, 64, 32)
"""Widths of a row; the widest that gives `MIN_ROWS` of them is taken."""
MIN_ROWS = 8
BATCH_ROWS = 2


@dataclass(frozen=True, slots=True, eq=False)
class PublicText:
    """Token batches (B, T); both empty where no text is configured."""

    held_out: tuple[torch.Tensor, ...] = ()
    learnt: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MeasuringInputs:
    """Everything but models."""

    tokenizer: PreTrainedTokenizerBase
    calibration: tuple[torch.Tensor, ...]
    text: PublicText
    questions: Sequence[Question]
    """Of the gate; empty where there is none."""
    task: Sequence[Example]
    """The stand-in for the task; empty where there is none."""


def check_inputs(config: CoordinatorConfig, sections: Sequence[EmulatorSection]) -> None:
    """That what is needed is named and there, before a model is loaded, which may take minutes.

    Raises:
        ConfigError: naming everything that is missing.
    """
    leak, problems = config.leak, list[str]()
    if any(map(needs_calibration, sections)) and config.emulator.calibration is None:
        methods = sorted(
            {section.method.value for section in sections if needs_calibration(section)}
        )
        problems.append(
            f"emulator.calibration: {', '.join(methods)} looks at activations; name a file of "
            "public text (.txt or .jsonl)"
        )
    if (config.emulator.distil_steps or leak.max_healed is not None) and not _text_paths(config):
        problems.append(
            "leak.text: distilling and healing learn from public text; name a file of it, or "
            "emulator.calibration"
        )
    budget = ("max_zero_shot", "max_tuned", "max_healed", "max_kept")
    if config.gate.questions is None and any(getattr(leak, n) is not None for n in budget):
        problems.append("gate.questions: a leak budget is judged on questions; name a file of them")
    if leak.task is not None and _is_same(leak.task, config.gate.questions):
        problems.append("leak.task: expected other questions than the gate's, which judge")
    named = {
        "emulator.calibration": config.emulator.calibration,
        "leak.text": leak.text,
        "leak.task": leak.task,
        "gate.questions": config.gate.questions,
    }
    problems += [
        f"{key}: expected a file, found none at {path}"
        for key, path in named.items()
        if path is not None and not path.is_file()
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def needs_calibration(section: EmulatorSection) -> bool:
    """Whether the method looks at activations or gradients at this ratio."""
    return section.ratio < 1 and make_method(section.method, options_of(section)).needs_calibration


def options_of(section: EmulatorSection) -> MethodOptions:
    """What its method is told beside the ratio."""
    return MethodOptions(section.gradient_lambda, section.harmoniser_rank)


def read_inputs(
    config: CoordinatorConfig, tokenizer: PreTrainedTokenizerBase, model_type: str, positions: int
) -> MeasuringInputs:
    """Reads the files that the settings name.

    Args:
        model_type: of the full model, for how its rows are encoded.
        positions: the longest row that it can read.

    Raises:
        ConfigError: one of them is malformed, or too short.
    """
    section, gate = config.emulator, config.gate
    calibration: tuple[torch.Tensor, ...] = ()
    if section.calibration is not None:
        calibration = calibration_batches(
            [section.calibration],
            tokenizer,
            total_tokens=section.calibration_tokens,
            row_tokens=min(ROW_TOKENS[0], positions),
        )
    questions: Sequence[Question] = ()
    if gate.questions is not None:
        questions = load_questions(gate.questions, gate.limit)
        questions = questions[: config.leak.questions or None]
    task: Sequence[Example] = ()
    if config.leak.task is not None:
        encoding = Encoding.for_model(model_type, config.tuning.max_tokens)
        task = question_examples(load_questions(config.leak.task, 0), tokenizer, encoding)
    text = _public_text(config, tokenizer, positions)
    return MeasuringInputs(tokenizer, calibration, text, questions, task)


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _text_paths(config: CoordinatorConfig) -> list[Path]:
    path = config.leak.text or config.emulator.calibration
    return [] if path is None else [path]


def _public_text(
    config: CoordinatorConfig, tokenizer: PreTrainedTokenizerBase, positions: int
) -> PublicText:
    paths, leak, section = _text_paths(config), config.leak, config.emulator
    if not paths:
        return PublicText()
    healing = leak.heal_steps * leak.heal_tokens_per_step
    distilling = section.distil_steps * section.distil_tokens_per_step
    shortest = ROW_TOKENS[-1]
    read = calibration_batches(
        paths,
        tokenizer,
        total_tokens=max(leak.text_tokens + max(healing, distilling), 2 * shortest),
        row_tokens=shortest,
    )
    tokens = torch.cat([batch.flatten() for batch in read])
    steps = [leak.heal_tokens_per_step] * (leak.heal_steps > 0)
    steps += [section.distil_tokens_per_step] * (section.distil_steps > 0)
    rows = _rows(tokens, min([positions, *steps]))
    if len(rows) < 2:
        raise ConfigError(
            f"{paths[0]}: expected at least two rows of public text, found {len(rows)}"
        )
    held_out = min(max(1, leak.text_tokens // rows.shape[1]), max(1, len(rows) // 4))
    return PublicText(_batches(rows[-held_out:]), _batches(rows[:-held_out]))


def _rows(tokens: torch.Tensor, limit: int) -> torch.Tensor:
    """The tokens [N] as rows (R, T), T at most `limit`."""
    widths = [width for width in ROW_TOKENS if width <= limit] or [limit]
    wide = (width for width in widths if len(tokens) // width >= MIN_ROWS)
    width = next(wide, widths[-1])
    rows = len(tokens) // width
    return tokens[: rows * width].view(rows, width)


def _batches(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(rows, BATCH_ROWS)
