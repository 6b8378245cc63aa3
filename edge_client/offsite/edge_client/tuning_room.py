"""What a round will take in memory, recomputed from the emulator at hand and from its plan.

The owner states the number by which an edge chooses an emulator, for the settings it had in mind when
it made the release. The plan of a round may have others, and the owner may be wrong. So it is said
before the model is loaded; to refuse would be too much, for the number is an estimate (`tuning_memory`).
"""

from collections.abc import Iterator

from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.emulator.tuning_memory import TuningLoad

_MIB = 1 << 20
TOLERANCE = 1.05
"""Another release of this program may count a little otherwise."""


def room_warnings(bundle: Bundle, settings: TuningSettings, free: int | None) -> Iterator[str]:
    """Lines for whoever runs this edge; `free` bytes of memory are available (None: not known)."""
    needed, stated = bundle.tuning_bytes(load_of(settings)), bundle.manifest.tuning_bytes
    takes = f"tuning this round takes about {needed // _MIB} MiB of memory"
    if needed > TOLERANCE * stated:
        yield f"{takes}, more than the {stated // _MIB} MiB that the release states"
    if free is not None and needed > free:
        yield f"{takes}, {free // _MIB} MiB are free: if it fails, join with a smaller --emulator"


def load_of(settings: TuningSettings) -> TuningLoad:
    """What of a plan's settings decides over memory."""
    return TuningLoad(
        micro_batch_tokens=settings.micro_batch_tokens,
        value_bytes=2 if settings.dtype is ComputeDtype.BFLOAT16 else 4,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
