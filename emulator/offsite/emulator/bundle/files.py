"""The files that a bundle may hold, and how long each may be."""

from offsite.emulator.bundle.config_rules import MAX_CONFIG_BYTES
from offsite.emulator.bundle.tensor_schema import MAX_SCHEMA_BYTES, SCHEMA
from offsite.emulator.bundle.tokenizer_files import (
    MAX_TOKENIZER_BYTES,
    MAX_TOKENIZER_CONFIG_BYTES,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from offsite.secure import limits

CONFIG = "config.json"
EMULATOR_WEIGHTS = "emulator.safetensors"
ADAPTER_WEIGHTS = "adapter.safetensors"

MAX_BYTES = {
    CONFIG: MAX_CONFIG_BYTES,
    SCHEMA: MAX_SCHEMA_BYTES,
    TOKENIZER: MAX_TOKENIZER_BYTES,
    TOKENIZER_CONFIG: MAX_TOKENIZER_CONFIG_BYTES,
    EMULATOR_WEIGHTS: limits.ARTEFACT_BYTES,
    ADAPTER_WEIGHTS: limits.ARTEFACT_BYTES,
}
REQUIRED = frozenset(MAX_BYTES) - {ADAPTER_WEIGHTS}
ENVELOPE_BYTES = limits.MANIFEST_BYTES + limits.KIB
"""Largest signed manifest: the payload and what the envelope puts around it."""
