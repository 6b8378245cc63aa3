"""What is exported, the folder it goes into, and what is written beside it.

Every export is made in a folder beside its destination and renamed when it is whole. It holds
`offsite.json` and `README.md`, which name the base model by fingerprint, the digest of every file,
and, where something was left out, how much of the gain is still there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.durable import machine_error, sha256_of
from offsite.emulator.rounds.instruction import adapter_digest
from offsite.secure.errors import ConfigError

DESCRIPTION = "offsite.json"
README = "README.md"


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuned adapter and the full model that it belongs to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    tensors: Mapping[str, Tensor]
    base_name: str
    base_fingerprint: str
    """`base_model.fingerprint` of the full model."""
    is_corrected: bool = False
    """Whether the tensors were corrected for compressed blocks (`plug_in_forms`)."""


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder that takes the place of `destination` when the block ends without an error.

    Raises:
        ConfigError: the destination holds something that is no export.
        MachineError: it cannot be written.
    """
    if destination.exists() and not _may_be_replaced(destination):
        raise ConfigError(f"{destination} holds something else; choose another folder")
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(destination, ignore_errors=True)
        partial.rename(destination)
    except OSError as error:
        raise machine_error(destination, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _may_be_replaced(destination: Path) -> bool:
    if not destination.is_dir():
        return False
    return (destination / DESCRIPTION).is_file() or not any(destination.iterdir())


def describe(folder: Path, tuned: Tuned, form: str, details: Mapping[str, object]) -> None:
    """Write `offsite.json` and `README.md`; call it last, the files' digests are taken here."""
    files = {
        path.name: sha256_of(path).hex() for path in sorted(folder.iterdir()) if path.is_file()
    }
    description = {
        "form": form,
        "base_model": tuned.base_name,
        "base_fingerprint_sha256": tuned.base_fingerprint,
        "adapter": dict(tuned.adapter.spec.to_json()),
        "adapter_sha256": adapter_digest(tuned.tensors),
        "corrected_at_plug_in": tuned.is_corrected,
        **details,
        "files_sha256": files,
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    (folder / README).write_text(_readme(description), encoding="utf-8")


def _readme(description: Mapping[str, object]) -> str:
    lines = [f"# {description['form']}", "", "Tuned with Offsite.", ""]
    for name, value in description.items():
        if name != "files_sha256":
            lines.append(f"- {name.replace('_', ' ')}: {_show(value)}")
    return "\n".join(lines) + "\n"


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_show(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return f"{len(value)} ({', '.join(map(str, value[:8]))}{', …' if len(value) > 8 else ''})"
    return "none" if value is None else str(value)
