"""Writing a release bundle: deterministic, one tensor at a time, visible only when complete.

Notable:
- equal input gives equal bytes; times come as arguments;
- everything is written to `<folder>.partial`, opened there as an edge would open it, and only then
  renamed, so that no release can be published that an edge would refuse;
- an earlier release in the folder stays in use until that moment, and survives every failure.

Source: the artefact rules of TUF (monotonic version, expiry, one consistent snapshot).
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.emulator.adapters.adapter import AdapterSpec
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.config_rules import neutral_config
from offsite.emulator.bundle.files import ADAPTER_WEIGHTS, CONFIG, EMULATOR_WEIGHTS
from offsite.emulator.bundle.manifest import (
    MANIFEST_NAME,
    MANIFEST_TYPE,
    FileEntry,
    Manifest,
    ReleaseFacts,
)
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.tensor_schema import SCHEMA, BundleSchema
from offsite.emulator.bundle.tokenizer_files import encode_tokenizer
from offsite.emulator.durable import (
    is_disk_full,
    machine_error,
    replace_folder,
    sync_folder,
    undo_half_exchange,
)
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import (
    check_finite,
    encode_header,
    spec_of,
    storage_order,
    tensor_bytes,
)
from offsite.emulator.strict_json import JsonObject, canonical_json
from offsite.secure.envelope import sign, to_bytes
from offsite.secure.errors import ConfigError, DiskFullError, PeerError
from offsite.secure.identity import IdentityKey

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a bundle. The model is plain: adapter tensors are given beside it."""

    model: "torch.nn.Module"
    config: "PretrainedConfig"
    layer_map: LayerMap
    adapter_spec: AdapterSpec
    adapter: "Mapping[str, torch.Tensor]"
    tokenizer: "PreTrainedTokenizerBase"


def write_bundle(
    folder: Path,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
    report: Report = silent,
) -> Manifest:
    """Writes, signs, verifies and publishes a release at `folder`; reports bytes.

    Raises:
        DiskFullError, MachineError: nothing was published; what `folder` held is intact.
        ConfigError: an edge would refuse this release, and why.
    """
    undo_half_exchange(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _removed_on_failure(partial):
        partial.mkdir(parents=True)
        manifest = _write_files(partial, contents, facts, report)
        envelope = sign(MANIFEST_TYPE, manifest.to_bytes(), signer)
        _write_synced(partial / MANIFEST_NAME, to_bytes(envelope))
        sync_folder(partial)
        _check_as_edge(partial, signer, facts)
        replace_folder(partial, folder)
    return manifest


def _write_files(folder: Path, contents: Contents, facts: ReleaseFacts, report: Report) -> Manifest:
    from offsite.emulator.instantiate import named_weights

    weights = named_weights(contents.model)
    schema = _schema(weights, contents)
    small = {
        CONFIG: canonical_json(_config(contents.config)),
        SCHEMA: schema.to_bytes(),
        **encode_tokenizer(contents.tokenizer),
    }
    files = [_write_small(folder, name, small[name]) for name in sorted(small)]
    stored = {name: contents.adapter[name] for name in schema.stored_adapter}
    progress = _Progress(report, sum(t.nbytes for t in (*weights.values(), *stored.values())))
    files.append(_write_tensors(folder, EMULATOR_WEIGHTS, weights, progress))
    if stored:
        files.append(_write_tensors(folder, ADAPTER_WEIGHTS, stored, progress))
    return Manifest(facts, contents.layer_map, contents.adapter_spec, tuple(files))


def _schema(weights: "Mapping[str, torch.Tensor]", contents: Contents) -> BundleSchema:
    emulator = {name: spec_of(tensor) for name, tensor in weights.items()}
    adapter = {name: spec_of(tensor) for name, tensor in contents.adapter.items()}
    return BundleSchema(emulator, adapter, _shared(weights, contents))


def _shared(weights: "Mapping[str, torch.Tensor]", contents: Contents) -> dict[str, str]:
    """Adapter tensors that equal a tensor of the emulator, by value and by name."""
    import torch

    from offsite.emulator.blocks import slot_blocks

    paths = {
        slot: path for slot, (path, _) in slot_blocks(contents.model, contents.layer_map).items()
    }
    shared = {}
    for name, tensor in contents.adapter.items():
        side, index, rest = name.split(".", 2)
        source = f"{paths.get(f'{side}.{index}')}.{rest}"
        if source in weights and torch.equal(weights[source].detach().to(tensor), tensor):
            shared[name] = source
    return shared


def _config(config: "PretrainedConfig") -> JsonObject:
    return neutral_config(json.loads(config.to_json_string()))


class _Progress:
    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def advance(self, count: int) -> None:
        self._done += count
        self._report(self._done, self._total)


def _write_small(folder: Path, name: str, data: bytes) -> FileEntry:
    with ChunkedFile(folder, name) as file:
        file.write(data)
        return file.finish()


def _write_tensors(
    folder: Path, name: str, tensors: "Mapping[str, torch.Tensor]", progress: _Progress
) -> FileEntry:
    schema = {key: spec_of(tensor) for key, tensor in tensors.items()}
    with ChunkedFile(folder, name) as file:
        file.write(encode_header(schema))
        for key in storage_order(schema):
            check_finite(key, tensors[key])
            file.write(tensor_bytes(tensors[key]))
            progress.advance(tensors[key].nbytes)
        return file.finish()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_as_edge(folder: Path, signer: IdentityKey, facts: ReleaseFacts) -> None:
    try:
        open_bundle(folder, signer.public, facts.created_unix_s)
    except PeerError as error:
        raise ConfigError(f"an edge would refuse this release: {error}") from error


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFullError(
                f"no room for the release at {partial.parent}: free some space and run it again;"
                " the release before it is intact"
            ) from error
        raise machine_error(partial, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
