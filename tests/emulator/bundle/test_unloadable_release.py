"""Releases that a right key signed and that no edge could load: `inspect` refuses them too."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.emulator.bundle.conftest import CREATED_UNIX_S
from tests.emulator.bundle.test_reader import open_now, tensors_of

from offsite.emulator.bundle import suspects
from offsite.emulator.bundle.files import EMULATOR_WEIGHTS
from offsite.emulator.bundle.hostile import hostile_checks
from offsite.emulator.bundle.report import inspect_bundle
from offsite.emulator.bundle.statistics import Sampling, measure
from offsite.emulator.bundle.suspicion import Verdict
from offsite.emulator.bundle.tensor_schema import SCHEMA
from offsite.emulator.schema import schema_to_json, spec_of, tensors_to_bytes
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityKey

Tensors = dict[str, torch.Tensor]
Forge = Callable[..., Path]
UP = "model.layers.1.mlp.up_proj"


def reshaped(folder: Path, forge: Forge, change: Callable[[Tensors], object]) -> Path:
    """The release with other tensors, and a schema that fits them."""
    tensors = tensors_of(folder, EMULATOR_WEIGHTS)
    change(tensors)
    schema = json.loads((folder / SCHEMA).read_bytes())
    schema["emulator"] = schema_to_json({name: spec_of(t) for name, t in tensors.items()})
    data = json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()
    return forge({EMULATOR_WEIGHTS: tensors_to_bytes(tensors), SCHEMA: data})


def integers(tensors: Tensors) -> None:
    tensors[f"{UP}.weight"] = torch.ones(tensors[f"{UP}.weight"].shape, dtype=torch.int64)


def dense_and_factored(tensors: Tensors) -> None:
    outputs, inputs = tensors[f"{UP}.weight"].shape
    tensors[f"{UP}.down.weight"] = torch.zeros(2, inputs)
    tensors[f"{UP}.up.weight"] = torch.zeros(outputs, 2)


def harmoniser_nowhere(tensors: Tensors) -> None:
    tensors["harmonisers.40.down.weight"] = torch.zeros(2, 16)
    tensors["harmonisers.40.up.weight"] = torch.zeros(16, 2)


def unknown(tensors: Tensors) -> None:
    tensors["model.extra.weight"] = torch.zeros(4, 4)


def missing(tensors: Tensors) -> None:
    del tensors[f"{UP}.weight"]


@pytest.mark.parametrize(
    "change", [integers, dense_and_factored, harmoniser_nowhere, unknown, missing]
)
def test_what_no_edge_could_load_is_refused_by_inspection(
    change: Callable[[Tensors], None], bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    folder = reshaped(bundle_folder, forge, change)
    with pytest.raises(PeerError):
        open_now(folder, signer).load_emulator(torch.float32)
    found = inspect_bundle(folder, signer.public, CREATED_UNIX_S)
    assert isinstance(found.refusal, PeerError)
    checks = found.description["checks"]
    assert isinstance(checks, list)
    assert checks[-1]["name"] == "architecture" and checks[-1]["outcome"] == "failed"


def test_values_that_no_float_of_the_model_holds_are_refused(
    bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    """Finite in the file, infinite in the model."""

    def enormous(tensors: Tensors) -> None:
        shape = tensors[f"{UP}.weight"].shape
        tensors[f"{UP}.weight"] = torch.full(shape, 1e300, dtype=torch.float64)

    folder = reshaped(bundle_folder, forge, enormous)
    with pytest.raises(IntegrityError, match=f"tensor {UP}.weight: expected finite values"):
        open_now(folder, signer).load_emulator(torch.float32)


@pytest.mark.parametrize(("strength", "verdict"), [(1.0, Verdict.CLEAR), (1000.0, Verdict.FINDING)])
def test_a_harmoniser_that_multiplies_is_found(
    strength: float, verdict: Verdict, bundle_folder: Path, forge: Forge, signer: IdentityKey
) -> None:
    def harmonised(tensors: Tensors) -> None:
        tensors["harmonisers.2.down.weight"] = strength * torch.eye(2, 16)
        tensors["harmonisers.2.up.weight"] = strength * torch.eye(16, 2)

    bundle = open_now(reshaped(bundle_folder, forge, harmonised), signer)
    bundle.check_architecture()
    statistics = measure(bundle.folder / EMULATOR_WEIGHTS, bundle.schema, Sampling(0))
    checks = {check.suspect: check for check in hostile_checks(bundle, statistics)}
    assert checks[suspects.HARMONISER].verdict is verdict
    assert checks[suspects.UNMEASURED].verdict is Verdict.CLEAR


def test_floats_without_figures_are_found(
    bundle_folder: Path, signer: IdentityKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wider than what is measured: no other check would see them."""
    monkeypatch.setattr("offsite.emulator.bundle.statistics.MAX_COLUMNS", 20)
    bundle = open_now(bundle_folder, signer)
    statistics = measure(bundle.folder / EMULATOR_WEIGHTS, bundle.schema, Sampling(0))
    checks = {check.suspect: check for check in hostile_checks(bundle, statistics)}
    assert checks[suspects.UNMEASURED].verdict is Verdict.FINDING
