"""What emulators are built from and measured on: public text, questions, a stand-in for the task.

Public text is read once and parted: the last `leak.text_tokens` tokens, a quarter at most, are held
out to measure perplexity on; a thief heals on the rest, and the owner distils on it. Rows are as
long as they can be, 512 tokens, of a short text shorter. Where calibration reads the same file, it
reads no further than where the held-out rows begin; a file that is shorter than
`emulator.calibration_tokens` and they together gives calibration less.

Rules: no data owner's data is here; what judges is never what was learnt (held-out rows, and a
stand-in that is not the gate).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

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


class Read(Protocol):
    """`calibration_batches` with the tokenizer of the full model, and BOS where it has one."""

    def __call__(
        self, paths: Sequence[Path], *, total_tokens: int, row_tokens: int
    ) -> tuple[torch.Tensor, ...]:
        """Token batches (B, T)."""


@dataclass(frozen=True, slots=True, eq=False)
class PublicText:
    """Token batches (B, T); both empty where no text is configured."""

    held_out: tuple[torch.Tensor, ...] = ()
    learnt: tuple[torch.Tensor, ...] = ()

    @property
    def learnt_tokens(self) -> int:
        """How many tokens of text stand before the held-out ones, at least: a row may have a BOS."""
        return sum(batch.numel() - len(batch) for batch in self.learnt)


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
    gate = config.gate
    read = partial(calibration_batches, tokenizer=tokenizer, model_type=model_type)
    text = _public_text(config, read, positions)
    calibration = _calibration(config, read, positions, text)
    questions: Sequence[Question] = ()
    if gate.questions is not None:
        questions = load_questions(gate.questions, gate.limit)
        questions = questions[: config.leak.questions or None]
    task: Sequence[Example] = ()
    if config.leak.task is not None:
        encoding = Encoding.for_model(model_type, config.tuning.max_tokens)
        task = question_examples(load_questions(config.leak.task, 0), tokenizer, encoding)
    return MeasuringInputs(tokenizer, calibration, text, questions, task)


def _is_same(path: Path, other: Path | None) -> bool:
    return other is not None and path.resolve() == other.resolve()


def _text_paths(config: CoordinatorConfig) -> list[Path]:
    path = config.leak.text or config.emulator.calibration
    return [] if path is None else [path]


def _is_text_calibration(config: CoordinatorConfig) -> bool:
    """Whether calibration reads the file that rows are held out of."""
    path = config.emulator.calibration
    return path is not None and any(_is_same(path, text) for text in _text_paths(config))


def _calibration(
    config: CoordinatorConfig, read: Read, positions: int, text: PublicText
) -> tuple[torch.Tensor, ...]:
    section = config.emulator
    if section.calibration is None:
        return ()
    tokens = section.calibration_tokens
    if _is_text_calibration(config):
        tokens = min(tokens, text.learnt_tokens)
    return read(
        [section.calibration], total_tokens=tokens, row_tokens=min(ROW_TOKENS[0], positions)
    )


def _public_text(config: CoordinatorConfig, read: Read, positions: int) -> PublicText:
    paths, leak, section = _text_paths(config), config.leak, config.emulator
    if not paths:
        return PublicText()
    healing = leak.heal_steps * leak.heal_tokens_per_step
    distilling = section.distil_steps * section.distil_tokens_per_step
    calibrating = section.calibration_tokens if _is_text_calibration(config) else 0
    shortest = min(ROW_TOKENS[-1], positions)
    wanted = max(leak.text_tokens + max(healing, distilling, calibrating), 2 * shortest)
    # How much there is decides how long rows are; so it is read twice.
    found = sum(b.numel() for b in read(paths, total_tokens=wanted, row_tokens=shortest))
    steps = [leak.heal_tokens_per_step] * (leak.heal_steps > 0)
    steps += [section.distil_tokens_per_step] * (section.distil_steps > 0)
    width = _width(found, min([positions, *steps]))
    rows = torch.cat(read(paths, total_tokens=wanted, row_tokens=width))
    if len(rows) < 2:
        raise ConfigError(
            f"{paths[0]}: expected at least two rows of {width} tokens of public text, one to learn "
            f"from and one held out, found {found} tokens; name a longer file"
        )
    held_out = min(max(1, leak.text_tokens // width), max(1, len(rows) // 4))
    return PublicText(_batches(rows[-held_out:]), _batches(rows[:-held_out]))


def _width(tokens: int, limit: int) -> int:
    """Of the rows into which so many tokens are cut, at most `limit`."""
    widths = [width for width in ROW_TOKENS if width <= limit] or [limit]
    return next((width for width in widths if tokens // width >= MIN_ROWS), widths[-1])


def _batches(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(rows, BATCH_ROWS)
