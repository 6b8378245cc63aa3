"""Loading the owner's full model and its tokenizer, and telling models apart.

Rules: from a local folder only; safetensors only, so no pickle is read; no remote code; the model
comes frozen, in eval mode, with attention chosen as `instantiate` chooses it, so that a full model
and its emulator compute in the same way.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from offsite.emulator.instantiate import attention_implementation, config_from_json
from offsite.emulator.schema import spec_of, tensor_bytes
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError, PeerError

CONFIG_FILE = "config.json"


def load_base_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The full model in a folder, frozen.

    Args:
        folder: as `save_pretrained` writes it.
        dtype: of the parameters; None takes the one they are stored in.

    Raises:
        ConfigError: the folder holds no such model, or one that needs remote code or pickle.
    """
    folder = Path(folder)
    # Before the library sees the folder.
    attention = attention_implementation(read_base_config(folder))
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder}: no *.safetensors; convert the model's weights to safetensors")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the model cannot be loaded: {error}") from error
    model.train(False)
    model.requires_grad_(False)
    return model


def read_base_config(folder: Path) -> PreTrainedConfig:
    """The config of the model in a folder, checked; reads no weights.

    Raises:
        ConfigError: it has none, or one of a model that is not supported.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected the config of a transformers model: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    try:
        return config_from_json(fields)
    except PeerError as error:
        raise ConfigError(f"{folder}: {error}") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, from its tokenizer files alone."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder}: no tokenizer.json; expected a fast tokenizer")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
    return tokenizer


def fingerprint(model: PreTrainedModel | Path) -> str:
    """Hexadecimal SHA-256 over name, dtype, shape and bytes of every weight, sorted by name.

    Tied weights count once. The dtype is part of it: a folder is read in the dtype it is stored
    in, so it has the fingerprint of a model that was loaded without a cast.
    """
    loaded = load_base_model(model) if isinstance(model, Path) else model
    digest = hashlib.sha256(b"offsite base model v1\n")
    for name, tensor in sorted(named_weights(loaded).items()):
        spec = spec_of(tensor)
        line = json.dumps([name, spec.dtype, list(spec.shape)]).encode()
        digest.update(len(line).to_bytes(8, "big") + line)
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
