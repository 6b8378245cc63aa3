"""Building a row's emulator as an owner does, and loading it as an edge does.

What is measured afterwards is what came out of a signed bundle on disk, so its bytes are those that
ship and its values are those that an edge unpacks.
"""

import time
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.emulators.lab import Lab
from benchmarks.emulators.ledger import Json
from benchmarks.emulators.rows import Row
from offsite.coordinator.shipped import shipped_bytes
from offsite.emulator.adapters.adapter import make_adapter
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.bundle.manifest import Manifest, ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.distil import DistilRecipe, distil
from offsite.emulator.methods.method import make_method
from offsite.emulator.packing.middle import roundtrip
from offsite.emulator.verbatim import measure_verbatim
from offsite.secure.errors import ConfigError
from offsite.secure.identity import IdentityKey

SIGNER = IdentityKey.from_seed(bytes(32))
"""Signs nothing that leaves the machine."""

DAY_S = 24 * 3600


class RefusedError(Exception):
    """The method cannot do this; the text says why."""


def build(lab: Lab, row: Row, folder: Path) -> Json:
    """Write the bundle of a row; returns sizes and times."""
    started = time.monotonic()
    method = make_method(row.method, row.options)
    calibration = lab.calibration if method.needs_calibration and row.ratio < 1 else ()
    try:
        emulator = build_emulator(
            lab.model, row.placement, row.method, row.ratio, calibration, options=row.options
        )
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    built = time.monotonic()
    if row.distil_steps:
        tokens = lab.settings.distil_tokens
        recipe = DistilRecipe(row.distil_steps, tokens, micro_batch_tokens=tokens)
        distil(lab.model, emulator, lab.distillation(row.distil_steps), recipe)
    distilled = time.monotonic()
    roundtrip(emulator.model, emulator.layer_map, row.packing)
    manifest = _write(lab, row, emulator, folder)
    return {
        "build_s": round(built - started, 1),
        "distil_s": round(distilled - built, 1),
        "bytes_shipped": shipped_bytes(emulator, row.packing, row.adapter),
        "bundle_bytes": manifest.bundle_bytes,
        **measure_shares(lab, load(lab, folder)),
    }


def measure_shares(lab: Lab, emulator: Emulator) -> Json:
    """What share of the full model's parameters ships, and what share of them bit for bit."""
    sizes = tuple(parameter_count(block) for block in find_blocks(lab.model).modules)
    verbatim = measure_verbatim(
        emulator.model, emulator.layer_map, lab.fingerprints, sizes, parameter_count(lab.model)
    ).to_json()
    share = parameter_count(emulator.model) / parameter_count(lab.model)
    return {
        "share_of_parameters": round(share, 4),
        "verbatim_share": verbatim["share"],
        "verbatim_middle": verbatim["share_of_middle"],
    }


def load(lab: Lab, folder: Path) -> Emulator:
    """The emulator in a bundle, with its first adapter values where the slots hold them."""
    bundle = open_bundle(folder, SIGNER.public, time.time())
    model = bundle.load_emulator(lab.model.dtype)
    assert isinstance(model, PreTrainedModel)
    return Emulator(model, bundle.manifest.layer_map)


def _write(lab: Lab, row: Row, emulator: Emulator, folder: Path) -> Manifest:
    adapter = make_adapter(row.adapter, emulator.layer_map)
    contents = Contents(
        emulator.model,
        emulator.model.config,
        emulator.layer_map,
        row.adapter,
        untouched(adapter, emulator.model),
        lab.tokenizer,
        packing=row.packing,
    )
    now = int(time.time())
    facts = ReleaseFacts(
        project="benchmark",
        release_version=1,
        created_unix_s=now,
        expires_unix_s=now + 30 * DAY_S,
        base_model="full model",
        base_fingerprint=lab.fingerprint,
        method=row.method.value,
        ratio=row.ratio,
        provenance={},
    )
    return write_bundle(folder, contents, facts, SIGNER)
