"""What is the same for all rows: how long to tune, how many questions, which learning rates."""

from dataclasses import dataclass

from offsite.emulator.adapters.adapter import AdapterKind


@dataclass(frozen=True, slots=True)
class Settings:
    """Each stage's record names those of these figures that it depends on."""

    steps: int = 60
    batch_examples: int = 16
    micro_batch_tokens: int = 640
    test_questions: int = 400
    choosing_questions: int = 200
    text_questions: int = 100
    """Of the test questions, how many are also read as plain text."""
    whole_block_rates: tuple[float, ...] = (2e-4, 6e-4)
    lora_rates: tuple[float, ...] = (5e-4, 2e-3)
    upper_whole_block_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    upper_lora_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    scoring_tokens: int = 1024
    calibration_tokens: int = 8192
    distil_tokens: int = 1024
    distil_row_tokens: int = 256
    heal_steps: int = 60
    heal_tokens: int = 1024
    heal_row_tokens: int = 256
    heal_rank: int = 32
    heal_rate: float = 1e-3

    def rates(self, kind: AdapterKind) -> tuple[float, ...]:
        """What a row chooses from."""
        return self.lora_rates if kind is AdapterKind.LORA else self.whole_block_rates

    def upper_rates(self, kind: AdapterKind) -> tuple[float, ...]:
        """What the upper bound chooses from."""
        return self.upper_lora_rates if kind is AdapterKind.LORA else self.upper_whole_block_rates


QUICK = Settings(
    steps=30,
    test_questions=200,
    choosing_questions=100,
    text_questions=100,
    whole_block_rates=(5e-4,),
    lora_rates=(2e-3,),
    upper_whole_block_rates=(2e-4, 5e-4),
    upper_lora_rates=(1e-3, 2e-3),
    heal_steps=30,
)
