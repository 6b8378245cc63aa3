"""The full model, real or random, and the bundles that edges load; all in a work folder."""

import shutil
import time
from pathlib import Path

import torch
from examples.inputs.wheels import MODEL

from benchmarks.emulator_build.model import random_model
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.base_model import load_base_model, load_tokenizer
from offsite.emulator.build import build_emulator
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName, make_method
from offsite.secure.identity import IdentityKey

SIGNER = IdentityKey.from_seed(bytes(32))
"""Signs nothing that leaves the machine."""

BUNDLES = {"offsite": AdapterKind.WHOLE_BLOCK, "offsite_lora": AdapterKind.LORA}
DAY_S = 24 * 3600
PLACEMENT = Placement(2, 2)


def write_random(folder: Path, parameters: float, tokenizer: Path) -> None:
    """A random model in bf16, with the tokenizer of another, which nothing here uses."""
    random_model(parameters).save_pretrained(folder / MODEL)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder / MODEL)


def write_bundles(folder: Path, method: MethodName, ratio: float) -> None:
    """The releases that the edges of this benchmark load."""
    model = load_base_model(folder / MODEL)
    tokenizer = load_tokenizer(folder / MODEL)
    vocabulary = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    calibration = [torch.randint(vocabulary, (1, 512), generator=generator) for _ in range(4)]
    needed = calibration if make_method(method).needs_calibration and ratio < 1 else ()
    emulator = build_emulator(model, PLACEMENT, method, ratio, needed, consume=True)
    del model
    now = int(time.time())
    facts = ReleaseFacts(
        "benchmark", 1, now, now + DAY_S, "full model", "00" * 32, method.value, ratio, {}
    )
    for name, kind in BUNDLES.items():
        spec = AdapterSpec(kind)
        adapter = make_adapter(spec, emulator.layer_map)
        first = untouched(adapter, emulator.model)
        contents = Contents(
            emulator.model, emulator.model.config, emulator.layer_map, spec, first, tokenizer
        )
        write_bundle(folder / name, contents, facts, SIGNER)
