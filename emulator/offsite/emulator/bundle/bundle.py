"""A verified bundle, and what can be made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.emulator.bundle.files import ADAPTER_WEIGHTS, EMULATOR_WEIGHTS
from offsite.emulator.bundle.manifest import MAIN, Manifest
from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.bundle.tokenizer_files import load_tokenizer
from offsite.emulator.schema import Schema, TensorFile, iter_checked, load_checked
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.tuning_memory import LEAST, TuningLoad, tuning_bytes
from offsite.secure.errors import PeerError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest whose signature and freshness were verified; its files not yet."""

    manifest: Manifest
    digest: bytes  # SHA-256 of the signed payload; of the main manifest, plans name the release so
    signer: bytes  # fingerprint of the key that signed it


@dataclass(frozen=True, slots=True)
class Bundle:
    """An emulator of a release, on disk, that `reader.open_bundle` has verified whole."""

    folder: Path
    signed: SignedManifest
    schema: BundleSchema
    config: JsonObject
    tokenizer_settings: JsonObject
    main: SignedManifest | None = None  # of the release; None where this is the main emulator
    variant: str = MAIN

    @property
    def manifest(self) -> Manifest:
        """What the release states."""
        return self.signed.manifest

    @property
    def digest(self) -> bytes:
        """SHA-256 of this emulator's signed manifest payload."""
        return self.signed.digest

    @property
    def release_digest(self) -> bytes:
        """The same of the main manifest: what plans name, whichever variant an edge tunes."""
        return (self.main or self.signed).digest

    @property
    def adapter_schema(self) -> Schema:
        """Names, dtypes and shapes of the tensors that are trained and returned."""
        return self.schema.adapter

    def check_architecture(self) -> None:
        """That the configuration describes the tensors, as `load_emulator` demands; reads no weight.

        Raises:
            PeerError: it does not; this release could not be tuned.
        """
        self._skeleton()

    def tuning_bytes(self, load: TuningLoad) -> int:
        """What tuning it takes, estimated from its own shapes, whatever the manifest states."""
        return tuning_bytes(self._skeleton(), self.manifest.layer_map, self.schema.adapter, load)

    def check_tuning_bytes(self) -> None:
        """That the memory that the manifest states for tuning is not less than it can be.

        Raises:
            PeerError: it is; an edge that chose this emulator by its memory was misled.
        """
        stated, least = self.manifest.tuning_bytes, self.tuning_bytes(LEAST)
        if stated < least:
            raise PeerError(
                f"emulator {self.variant}: expected at least {least} bytes stated for tuning, which "
                f"its weights and its adapter take, found {stated}: ask its owner for another release"
            )

    def _skeleton(self) -> "PreTrainedModel":
        import torch

        from offsite.emulator.instantiate import config_from_json, skeleton

        kept = self.manifest.layer_map.kept
        return skeleton(config_from_json(self.config), self.schema.emulator, torch.float32, kept)

    def load_emulator(self, dtype: "torch.dtype") -> "torch.nn.Module":
        """The emulator with its first adapter values, on the CPU; reads one tensor at a time."""
        from offsite.emulator.bundle.weights import fill
        from offsite.emulator.instantiate import instantiate

        kept = self.manifest.layer_map.kept
        model = instantiate(self.config, self.schema.emulator, dtype, kept)
        fill(model, self.folder / EMULATOR_WEIGHTS, self.schema)
        return model

    def load_adapter(self) -> "dict[str, torch.Tensor]":
        """The first adapter values, fp32: those of its own file and those the emulator holds."""
        import torch

        adapter = {}
        if stored := self.schema.stored_adapter:
            adapter = load_checked(self.folder / ADAPTER_WEIGHTS, stored)
        names = {source: name for name, source in self.schema.shared.items()}
        weights = self.folder / EMULATOR_WEIGHTS
        for source, tensor in iter_checked(weights, self.schema.stored_emulator, names):
            adapter[names[source]] = tensor.to(torch.float32)
        return {name: adapter[name] for name in self.schema.adapter}

    def read_adapter_tensor(self, name: str) -> "torch.Tensor":
        """One tensor of `load_adapter`; the others are not read."""
        import torch

        if name in self.schema.stored_adapter:
            path, stored, source = ADAPTER_WEIGHTS, self.schema.stored_adapter, name
        else:
            path, stored, source = (
                EMULATOR_WEIGHTS,
                self.schema.stored_emulator,
                self.schema.shared[name],
            )
        with TensorFile(self.folder / path, stored) as file:
            return file.read(source).to(torch.float32)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The generic fast tokenizer over the bundle's tokenizer files."""
        return load_tokenizer(self.folder)
