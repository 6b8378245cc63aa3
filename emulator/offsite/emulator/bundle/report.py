"""What `edge-client inspect` shows: what a bundle holds, from whom, and which checks it passed.

The description is a JSON object of its own, for scripts; the table is made from it, so the two
never disagree. A refused bundle is described by its checks and the reason alone: nothing it states
about itself is repeated. Text from the bundle is printed as plain text, never as markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.checks import Check, Checklist
from offsite.emulator.bundle.files import EMULATOR_WEIGHTS
from offsite.emulator.bundle.hostile import hostile_checks
from offsite.emulator.bundle.manifest import MAIN, Manifest
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.report_tables import sections
from offsite.emulator.bundle.statistics import Places, Sampling, measure
from offsite.emulator.bundle.statistics_json import statistics_json
from offsite.emulator.bundle.suspicion import Verdict
from offsite.emulator.layer_map import BOTTOM, MIDDLE, SPREAD, TOP
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import Schema
from offsite.emulator.strict_json import JsonObject, JsonValue
from offsite.secure.errors import OffsiteError, PeerError
from offsite.secure.identity import IdentityPublicKey

if TYPE_CHECKING:
    from rich.console import Group

_DAY_S = 86_400
_EXPIRES_SOON_S = 7 * _DAY_S
_LARGE_UPDATE_BYTES = 1 << 30
LEAK_FIGURES = ("zero_shot", "tuned", "healed", "kept", "verbatim")
"""Of a leak report (`leak.report`); all of them are for whoever wants to rely on it."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The verdict on a bundle: a description to show, and the reason when it was refused."""

    description: JsonObject
    refusal: PeerError | None
    bundle: Bundle | None  # None when it was refused


def inspect_bundle(
    folder: Path,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
    *,
    expected_base: str | None = None,
    minimum_version: int = 0,
    report: Report = silent,
) -> Inspection:
    """Verifies a bundle as `open_bundle` does, and that it can be loaded; describes it either way."""
    checks: list[Check] = []
    try:
        bundle = open_bundle(
            folder,
            coordinator_key,
            now_unix_s,
            expected_base=expected_base,
            minimum_version=minimum_version,
            report=report,
            observe=checks.append,
        )
        with Checklist(checks.append).step("architecture"):
            bundle.check_architecture()
        with Checklist(checks.append).step("memory for tuning"):
            bundle.check_tuning_bytes()
    except PeerError as error:
        return Inspection(_describe_refusal(folder, error, checks), error, None)
    description = describe(bundle, now_unix_s, coordinator_key, checks)
    return Inspection(description, None, bundle)


def describe(
    bundle: Bundle,
    now_unix_s: float,
    signer: IdentityPublicKey,
    checks: Sequence[Check] = (),
) -> JsonObject:
    """A verified bundle as a JSON object."""
    return {
        "accepted": True,
        "folder": str(bundle.folder),
        "release": _release(bundle, signer, now_unix_s),
        "variants": _variants(bundle),
        "emulator": _emulator(bundle),
        "adapter": _adapter(bundle),
        "provenance": bundle.manifest.facts.provenance,
        "bundle_bytes": bundle.manifest.bundle_bytes,
        "files": [
            {"path": entry.path, "bytes": entry.size, "sha256": entry.sha256.hex()}
            for entry in bundle.manifest.files
        ],
        "checks": _checks(checks),
        "warnings": _warnings(bundle, now_unix_s),
    }


def examine(
    bundle: Bundle, description: JsonObject, sampling: Sampling, report: Report = silent
) -> JsonObject:
    """The description with the figures of the tensors and the checks against a hostile release.

    Findings are warnings: the release stays accepted. Reports the values read.
    """
    path = bundle.folder / EMULATOR_WEIGHTS
    statistics = measure(path, bundle.schema, sampling, report)
    checks = hostile_checks(bundle, statistics)
    findings = [check.warning for check in checks if check.verdict is Verdict.FINDING]
    warnings = description["warnings"]
    assert isinstance(warnings, list)
    return {
        **description,
        "statistics": statistics_json(bundle, statistics),
        "hostile_checks": [check.to_json() for check in checks],
        "warnings": [*warnings, *findings],
    }


def render(description: JsonObject) -> "Group":
    """The description as rich tables."""
    from rich.console import Group
    from rich.text import Text

    verdict = "accepted" if description["accepted"] else f"refused: {description['refusal']}"
    warnings = description.get("warnings", ())
    assert isinstance(warnings, Sequence)
    return Group(
        Text(f"{description['folder']}: {verdict}"),
        *sections(description),
        *(Text(f"warning: {warning}") for warning in warnings),
    )


def _describe_refusal(folder: Path, error: OffsiteError, checks: Sequence[Check]) -> JsonObject:
    return {
        "accepted": False,
        "folder": str(folder),
        "refusal": str(error),
        "checks": _checks(checks),
    }


def _release(bundle: Bundle, signer: IdentityPublicKey, now_unix_s: float) -> JsonObject:
    facts = bundle.manifest.facts
    return {
        "project": facts.project,
        "version": facts.release_version,
        "signed_by": signer.short,
        "signer_fingerprint": bundle.signed.signer.hex(),
        "digest": bundle.digest.hex(),
        "created": _time(facts.created_unix_s),
        "expires": _time(facts.expires_unix_s),
        "days_left": _days_left(bundle, now_unix_s),
        "base_model": facts.base_model,
        "base_fingerprint": facts.base_fingerprint,
    }


def _emulator(bundle: Bundle) -> JsonObject:
    layer_map = bundle.manifest.layer_map
    return {
        "architecture": bundle.config["model_type"],
        "method": bundle.manifest.facts.method,
        "ratio": bundle.manifest.facts.ratio,
        "base_blocks": layer_map.base_blocks,
        "kept_blocks": len(layer_map.kept),
        "bottom_slots": _slots(bundle.manifest, BOTTOM),
        "spread_slots": _slots(bundle.manifest, SPREAD),
        "middle_slots": _slots(bundle.manifest, MIDDLE),
        "top_slots": _slots(bundle.manifest, TOP),
        "tensors": len(bundle.schema.emulator),
        "parameters": _elements(bundle.schema.emulator),
        "packing": bundle.manifest.packing.value,
        "packed_tensors": len(bundle.schema.packed),
        "bytes": _bytes(bundle.schema.stored_emulator),
        "tuning_bytes": bundle.manifest.tuning_bytes,
    }


def _variants(bundle: Bundle) -> list[JsonValue]:
    """The emulators of the release beside this one, by the main manifest; none is no choice."""
    main = (bundle.main or bundle.signed).manifest
    if not main.variants:
        return []
    sizes = [(MAIN, main.bundle_bytes, main.tuning_bytes)]
    sizes += [(entry.name, entry.bundle_bytes, entry.tuning_bytes) for entry in main.variants]
    return [
        {
            "name": name,
            "bundle_bytes": bundle_bytes,
            "tuning_bytes": tuning_bytes,
            "this_one": name == bundle.variant,
        }
        for name, bundle_bytes, tuning_bytes in sizes
    ]


def _adapter(bundle: Bundle) -> JsonObject:
    spec = bundle.manifest.adapter
    lora: JsonObject = {}
    if spec.kind is AdapterKind.LORA:
        lora = {"rank": spec.rank, "alpha": spec.alpha, "trains": spec.trains.value}
    return {
        "kind": spec.kind.value,
        **lora,
        "slots": [slot.name for slot in bundle.manifest.layer_map.slots],
        "tensors": len(bundle.schema.adapter),
        "parameters": _elements(bundle.schema.adapter),
        "update_bytes": _bytes(bundle.schema.adapter),
    }


def _warnings(bundle: Bundle, now_unix_s: float) -> list[JsonValue]:
    facts = bundle.manifest.facts
    found: list[JsonValue] = []
    if now_unix_s > facts.expires_unix_s - _EXPIRES_SOON_S:
        days = _days_left(bundle, now_unix_s)
        found.append(f"The release expires in {days} days; ask its owner when the next one comes.")
    if facts.ratio >= 1.0 or _is_full_model(bundle):
        found.append("The middle was not compressed: this is the full model, not an emulator.")
    if not facts.provenance:
        found.append("The owner states nothing about how the emulator was made or measured.")
    elif missing := [name for name in ("fidelity", "leak") if name not in facts.provenance]:
        found.append(f"The owner signed no report on {' and none on '.join(missing)}.")
    if "leak" in facts.provenance and (unmeasured := _without_figure(facts.provenance["leak"])):
        found.append(
            f"The owner's leak report has no figure for {', '.join(unmeasured)}: nobody says what a "
            "thief of this emulator could do with it."
        )
    if "chat_template" in bundle.tokenizer_settings:
        found.append("It has a chat template, a Jinja program; it is rendered in a sandbox.")
    if (update_bytes := _bytes(bundle.schema.adapter)) > _LARGE_UPDATE_BYTES:
        found.append(f"Every round sends an update of {update_bytes / 2**30:.1f} GiB.")
    return found


def _without_figure(leak: JsonValue) -> list[str]:
    """The figures of a leak report that are missing, or without a number."""
    report = leak if isinstance(leak, Mapping) else {}
    figures = {name: report.get(name) for name in LEAK_FIGURES}
    values = {n: f.get("value") if isinstance(f, Mapping) else None for n, f in figures.items()}
    return [name for name, value in values.items() if type(value) not in (int, float)]


def _is_full_model(bundle: Bundle) -> bool:
    """Whether every block is there, and none is smaller than the slots, which stay as they are.

    By layer map and schema, whatever the owner states; without such a slot nothing is known.
    """
    layer_map = bundle.manifest.layer_map
    if layer_map.kept != tuple(range(layer_map.base_blocks)):
        return False
    places = Places.of(bundle.schema.emulator)
    shapes: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, spec in bundle.schema.emulator.items():
        position, inside = places.of_tensor(name)
        if position is not None:
            shapes.setdefault(position, {})[inside] = spec.shape
    middle = layer_map.middle
    whole = [shapes[position] for position in shapes if position not in middle]
    return bool(whole) and all(shapes.get(position) in whole for position in middle)


def _days_left(bundle: Bundle, now_unix_s: float) -> int:
    return max(0, int(bundle.manifest.facts.expires_unix_s - now_unix_s) // _DAY_S)


def _checks(checks: Sequence[Check]) -> list[JsonValue]:
    return [
        {"name": check.name, "outcome": check.outcome.value, "detail": check.detail}
        for check in checks
    ]


def _slots(manifest: Manifest, kind: str) -> int:
    return sum(slot.name.startswith(f"{kind}.") for slot in manifest.layer_map.slots)


def _elements(schema: Schema) -> int:
    return sum(spec.elements for spec in schema.values() if spec.is_float)


def _bytes(schema: Schema) -> int:
    return sum(spec.num_bytes for spec in schema.values())


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
