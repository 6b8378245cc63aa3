"""Writing a release bundle: deterministic, one tensor at a time, visible only when complete.

Notable:
- equal input gives equal bytes; times come as arguments;
- everything is written to `<folder>.partial`, opened there as an edge would open it, and only then
  renamed, so that no release can be published that an edge would refuse;
- an earlier release in the folder stays in use until that moment, and survives every failure;
- variants are taken from an iterator one by one, so that not all models must be there at once;
- what is packed must have been measured: a model whose middle does not hold the values that an edge
  unpacks is refused (`packing.middle.roundtrip` puts them there).

Source: the artefact rules of TUF (monotonic version, expiry, one consistent snapshot).
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.emulator.adapters.adapter import AdapterSpec
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.config_rules import neutral_config
from offsite.emulator.bundle.files import ADAPTER_WEIGHTS, CONFIG, EMULATOR_WEIGHTS
from offsite.emulator.bundle.manifest import (
    MANIFEST_NAME,
    MANIFEST_TYPE,
    VARIANT_NAMES,
    FileEntry,
    Manifest,
    ReleaseFacts,
    VariantEntry,
    is_variant_name,
)
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stored_tensors import StoredTensors
from offsite.emulator.bundle.tensor_schema import SCHEMA, BundleSchema
from offsite.emulator.bundle.tokenizer_files import encode_tokenizer
from offsite.emulator.bundle.variants import VARIANTS, emulator_names, variant_folder
from offsite.emulator.durable import (
    is_disk_full,
    machine_error,
    replace_folder,
    sync_folder,
    undo_half_exchange,
)
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.packing.packing import Packing
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import (
    Schema,
    check_finite,
    encode_header,
    spec_of,
    storage_order,
    tensor_bytes,
)
from offsite.emulator.strict_json import JsonObject, canonical_json
from offsite.emulator.tuning_memory import TuningLoad, tuning_bytes
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
    packing: Packing = Packing.NONE
    load: TuningLoad = field(default_factory=TuningLoad)
    """What edges will be asked to tune with, for the estimate of their memory."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Another emulator of the release; its facts differ in method, ratio and provenance alone."""

    name: str
    contents: Contents
    facts: ReleaseFacts


def write_bundle(
    folder: Path,
    contents: Contents,
    facts: ReleaseFacts,
    signer: IdentityKey,
    report: Report = silent,
    *,
    variants: Iterable[Variant] = (),
) -> Manifest:
    """Writes, signs, verifies and publishes a release at `folder`; reports bytes, per emulator.

    Raises:
        DiskFullError, MachineError: nothing was published; what `folder` held is intact.
        ConfigError: an edge would refuse this release, and why.
    """
    undo_half_exchange(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _removed_on_failure(partial):
        # (1) The files of the main emulator, then the variants, each with its signed manifest.
        partial.mkdir(parents=True)
        with _owners_fault():
            manifest = _write_files(partial, contents, facts, report)
        entries = tuple(_write_variant(partial, variant, signer, report) for variant in variants)
        # (2) The main manifest, which names them.
        manifest = replace(manifest, variants=entries)
        _sign(partial, manifest, signer)
        # (3) Opened as an edge would; then the new release is there at once.
        _check_as_edge(partial, signer, manifest)
        replace_folder(partial, folder)
    return manifest


def _write_variant(
    partial: Path, variant: Variant, signer: IdentityKey, report: Report
) -> VariantEntry:
    if not is_variant_name(variant.name):
        raise ConfigError(f"variant: expected a name of {VARIANT_NAMES}, found {variant.name!a}")
    folder = variant_folder(partial, variant.name)
    if folder.exists():
        raise ConfigError(f"expected every variant once, found {variant.name} twice")
    folder.mkdir(parents=True)
    with _owners_fault(f"variant {variant.name}: "):
        manifest = _write_files(folder, variant.contents, variant.facts, report)
    envelope = _sign(folder, manifest, signer)
    sync_folder(partial / VARIANTS)
    return VariantEntry(
        variant.name,
        hashlib.sha256(envelope).digest(),
        len(envelope),
        manifest.bundle_bytes,
        manifest.tuning_bytes,
    )


def _sign(folder: Path, manifest: Manifest, signer: IdentityKey) -> bytes:
    envelope = to_bytes(sign(MANIFEST_TYPE, manifest.to_bytes(), signer))
    _write_synced(folder / MANIFEST_NAME, envelope)
    sync_folder(folder)
    return envelope


def _write_files(folder: Path, contents: Contents, facts: ReleaseFacts, report: Report) -> Manifest:
    from offsite.emulator.weights import named_weights

    weights = named_weights(contents.model)
    schema = _schema(weights, contents)
    small = {
        CONFIG: canonical_json(_config(contents.config)),
        SCHEMA: schema.to_bytes(),
        **encode_tokenizer(contents.tokenizer),
    }
    files = [_write_small(folder, name, small[name]) for name in sorted(small)]
    stored, own = schema.stored_emulator, schema.stored_adapter
    progress = _Progress(report, sum(s.num_bytes for s in (*stored.values(), *own.values())))
    tensor_of = StoredTensors(weights, schema).tensor
    files.append(_write_tensors(folder, EMULATOR_WEIGHTS, stored, tensor_of, progress))
    if own:
        adapter = contents.adapter.__getitem__
        files.append(_write_tensors(folder, ADAPTER_WEIGHTS, own, adapter, progress))
    return _manifest(contents, facts, tuple(files), schema)


def _manifest(
    contents: Contents, facts: ReleaseFacts, files: tuple[FileEntry, ...], schema: BundleSchema
) -> Manifest:
    from transformers import PreTrainedModel

    assert isinstance(contents.model, PreTrainedModel)
    return Manifest(
        facts,
        contents.layer_map,
        contents.adapter_spec,
        files,
        contents.packing,
        schema.adapter_sha256,
        tuning_bytes(contents.model, contents.layer_map, schema.adapter, contents.load),
    )


def _schema(weights: "Mapping[str, torch.Tensor]", contents: Contents) -> BundleSchema:
    from offsite.emulator.packing.middle import packed_axes

    emulator = {name: spec_of(tensor) for name, tensor in weights.items()}
    adapter = {name: spec_of(tensor) for name, tensor in contents.adapter.items()}
    packed: dict[str, int] = {}
    if contents.packing is not Packing.NONE:
        packed = packed_axes(contents.model, contents.layer_map)
    shared = _shared(weights, contents)
    return BundleSchema(emulator, adapter, shared, contents.packing, packed)


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
    folder: Path,
    name: str,
    schema: Schema,
    tensor_of: "Callable[[str], torch.Tensor]",
    progress: _Progress,
) -> FileEntry:
    with ChunkedFile(folder, name) as file:
        file.write(encode_header(schema))
        for key in storage_order(schema):
            tensor = tensor_of(key)
            check_finite(key, tensor)
            file.write(tensor_bytes(tensor))
            progress.advance(tensor.nbytes)
        return file.finish()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_as_edge(folder: Path, signer: IdentityKey, manifest: Manifest) -> None:
    try:
        for name in emulator_names(manifest):
            open_bundle(folder, signer.public, manifest.facts.created_unix_s, emulator=name)
    except PeerError as error:
        raise ConfigError(f"an edge would refuse this release: {error}") from error


@contextlib.contextmanager
def _owners_fault(whose: str = "") -> Iterator[None]:
    """What would be the sender's fault in a bundle that arrived is the owner's in one to be made."""
    try:
        yield
    except PeerError as error:
        raise ConfigError(f"{whose}this emulator cannot be released: {error}") from error


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
