"""Measures the candidates of a search on the owner's model.

Notable: the full model stays in memory throughout, for the plug-in; it is measured itself before the
first candidate is, so a search that knows everything already measures nothing.

Rule: on questions on which the full model is no better than chance nothing can be judged, so nothing
is measured on them.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel

from offsite.coordinator.building import build
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.measuring import Yardstick
from offsite.coordinator.measuring_inputs import MeasuringInputs
from offsite.coordinator.publishing import check_section_travels
from offsite.coordinator.tables.points import Stage
from offsite.emulator.durable import sha256_of, unreadable
from offsite.emulator.leak.skill import chance_level, skill_share
from offsite.emulator.progress import Progress
from offsite.emulator.settings import Plain, to_tables
from offsite.emulator.strict_json import canonical_json
from offsite.secure.errors import ConfigError

RECIPE = 3
"""Raised when the same settings give other figures than before, within a version of the program."""
PATHS = ("text", "task")
"""Of `[leak]`: files count by what is in them, wherever they lie."""


@dataclass(slots=True)
class ModelMeasurer:
    """A `Measurer` for one full model."""

    config: CoordinatorConfig
    base_model: PreTrainedModel
    inputs: MeasuringInputs
    progress: Progress
    _yardstick: Yardstick | None = None

    def prepare(self) -> None:
        """See `Measurer`."""
        questions = self.inputs.questions
        scores = self._measured_base().base.scores
        skill = skill_share(scores, scores, chance_level(questions), whose="the full model")
        if skill.value is None:
            raise ConfigError(f"gate.questions: {skill.reason}; give more of them, or easier ones")

    def measure(self, stage: Stage, section: EmulatorSection) -> dict[str, float]:
        """See `Measurer`; a figure that means nothing on these questions is left out."""
        yardstick = self._measured_base()
        seed = self.config.campaign.seed
        check_section_travels(self.config, section, self.base_model)
        emulator = build(section, self.base_model, self.inputs, seed, self.progress)
        packed = yardstick.pack(emulator, section.packing)
        match stage:
            case Stage.BOUND:
                found = yardstick.tuned_only(packed)
            case Stage.QUICK:
                found = yardstick.quick(packed)
            case Stage.FULL:
                found = yardstick.whole(packed, self.base_model)
        return found.figures()

    def _measured_base(self) -> Yardstick:
        if self._yardstick is None:
            self._yardstick = Yardstick.of(self.config, self.inputs, self.base_model, self.progress)
        return self._yardstick


def measured_with(config: CoordinatorConfig) -> str:
    """Digest of everything but the emulator's own settings that decides what is measured.

    Limits are not part of it: another budget judges the same figures.
    """
    tables = to_tables(config)
    files = (
        config.emulator.calibration,
        config.leak.text,
        config.leak.task,
        config.gate.questions,
    )
    leak = {key: value for key, value in tables["leak"].items() if key not in PATHS}
    decides: dict[str, Plain] = {
        "program": version("offsite"),
        "recipe": RECIPE,
        "adapter": tables["adapter"],
        "tuning": tables["tuning"],
        "leak": {key: value for key, value in leak.items() if not key.startswith("max_")},
        "calibration_tokens": config.emulator.calibration_tokens,
        "gate_limit": config.gate.limit,
        "files": [_digest(path) for path in files],
    }
    return hashlib.sha256(canonical_json(decides)).hexdigest()


def _digest(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return sha256_of(path).hex()
    except OSError as error:
        raise unreadable(path, error) from error
