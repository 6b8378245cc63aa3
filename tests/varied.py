"""A release of three emulators of one tiny Llama: all blocks, fewer blocks, 4 bits a weight."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.tiny import save_llama
from transformers import PreTrainedTokenizerFast

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.base_model import fingerprint, load_base_model
from offsite.emulator.build import build_emulator
from offsite.emulator.bundle.manifest import Manifest, ReleaseFacts
from offsite.emulator.bundle.writer import Contents, Variant, write_bundle
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.middle import roundtrip
from offsite.emulator.packing.packing import Packing
from offsite.secure.identity import IdentityKey

SIGNER = IdentityKey.from_seed(bytes(range(32)))
DROP = MethodName.UNIFORM_DROP
SPEC = AdapterSpec(AdapterKind.LORA, rank=2, alpha=4)
SANDWICH = Placement(1, 1)


@dataclass(frozen=True)
class Varied:
    """The owner's side: the full model in a folder, and what releases of it are made of."""

    model: Path
    spec: AdapterSpec = SPEC
    placement: Placement = SANDWICH

    def contents(self, ratio: float, packing: Packing = Packing.NONE) -> Contents:
        base = load_base_model(self.model)
        emulator = build_emulator(base, self.placement, DROP, ratio)
        roundtrip(emulator.model, emulator.layer_map, packing)
        adapter = make_adapter(self.spec, emulator.layer_map)
        adapter.attach(emulator.model)
        tensors = adapter.extract(emulator.model)
        adapter.detach(emulator.model)
        return Contents(
            emulator.model,
            emulator.model.config,
            emulator.layer_map,
            self.spec,
            tensors,
            PreTrainedTokenizerFast.from_pretrained(self.model),
            packing,
        )

    def facts(self, version: int = 1, now: float | None = None) -> ReleaseFacts:
        created = int(time.time() if now is None else now)
        base = fingerprint(self.model)
        return ReleaseFacts(
            "sky", version, created, created + 3600, "tiny", base, DROP.value, 1.0, {}
        )

    def variants(self, facts: ReleaseFacts) -> Iterator[Variant]:
        """`small` and `packed`, each made when it is asked for."""
        yield Variant("small", self.contents(0.3), replace(facts, ratio=0.3))
        yield Variant("packed", self.contents(1.0, Packing.NF4), facts)

    def release(self, folder: Path, version: int = 1, now: float | None = None) -> Manifest:
        facts = self.facts(version, now)
        variants = self.variants(facts)
        return write_bundle(folder, self.contents(1.0), facts, SIGNER, variants=variants)


def tiny_varied(folder: Path, spec: AdapterSpec = SPEC) -> Varied:
    """With a random model in `folder`, of six blocks."""
    return Varied(save_llama(folder, hidden=32, blocks=6), spec)
