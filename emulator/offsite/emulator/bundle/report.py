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
from offsite.emulator.bundle.checks import Check, Outcome
from offsite.emulator.bundle.manifest import Manifest
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import Schema
from offsite.emulator.strict_json import JsonObject, JsonValue
from offsite.secure.errors import OffsiteError, PeerError
from offsite.secure.identity import IdentityPublicKey

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_DAY_S = 86_400
_EXPIRES_SOON_S = 7 * _DAY_S
_LARGE_UPDATE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Inspection:
    """The verdict on a bundle: a description to show, and the reason when it was refused."""

    description: JsonObject
    refusal: PeerError | None


def inspect_bundle(
    folder: Path,
    coordinator_key: IdentityPublicKey,
    now_unix_s: float,
    *,
    expected_base: str | None = None,
    minimum_version: int = 0,
    report: Report = silent,
) -> Inspection:
    """Verifies a bundle as `open_bundle` does and describes it, refused or not."""
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
    except PeerError as error:
        return Inspection(_describe_refusal(folder, error, checks), error)
    return Inspection(describe(bundle, now_unix_s, coordinator_key, checks), None)


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
        "release": _release(bundle, signer),
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


def render(description: JsonObject) -> "Group":
    """The description as rich tables."""
    from rich.console import Group
    from rich.text import Text

    verdict = "accepted" if description["accepted"] else f"refused: {description['refusal']}"
    parts: list[Text | Table] = [Text(f"{description['folder']}: {verdict}")]
    for title in ("release", "emulator", "adapter", "provenance"):
        if section := description.get(title):
            parts.append(_table(title, _rows(section)))
    parts.append(_table("checks", _check_rows(description["checks"])))
    warnings = description.get("warnings", ())
    assert isinstance(warnings, Sequence)
    parts += [Text(f"warning: {warning}") for warning in warnings]
    return Group(*parts)


def _describe_refusal(folder: Path, error: OffsiteError, checks: Sequence[Check]) -> JsonObject:
    return {
        "accepted": False,
        "folder": str(folder),
        "refusal": str(error),
        "checks": _checks(checks),
    }


def _release(bundle: Bundle, signer: IdentityPublicKey) -> JsonObject:
    facts = bundle.manifest.facts
    return {
        "project": facts.project,
        "version": facts.release_version,
        "signed_by": signer.short,
        "signer_fingerprint": bundle.signed.signer.hex(),
        "digest": bundle.digest.hex(),
        "created": _time(facts.created_unix_s),
        "expires": _time(facts.expires_unix_s),
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
        "bottom_slots": _slots(bundle.manifest, "bottom."),
        "top_slots": _slots(bundle.manifest, "top."),
        "tensors": len(bundle.schema.emulator),
        "parameters": _elements(bundle.schema.emulator),
        "bytes": _bytes(bundle.schema.emulator),
    }


def _adapter(bundle: Bundle) -> JsonObject:
    spec = bundle.manifest.adapter
    lora: JsonObject = {}
    if spec.kind is AdapterKind.LORA:
        lora = {"rank": spec.rank, "alpha": spec.alpha}
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
        days = max(0, int(facts.expires_unix_s - now_unix_s) // _DAY_S)
        found.append(f"The release expires in {days} days; ask its owner when the next one comes.")
    if facts.ratio >= 1.0:
        found.append("The middle was not compressed: this is the full model, not an emulator.")
    if not facts.provenance:
        found.append("The owner states nothing about how the emulator was made or measured.")
    if "chat_template" in bundle.tokenizer_settings:
        found.append("It has a chat template, a Jinja program; it is rendered in a sandbox.")
    if (update_bytes := _bytes(bundle.schema.adapter)) > _LARGE_UPDATE_BYTES:
        found.append(f"Every round sends an update of {update_bytes / 2**30:.1f} GiB.")
    return found


def _checks(checks: Sequence[Check]) -> list[JsonValue]:
    return [
        {"name": check.name, "outcome": check.outcome.value, "detail": check.detail}
        for check in checks
    ]


def _slots(manifest: Manifest, prefix: str) -> int:
    return sum(slot.name.startswith(prefix) for slot in manifest.layer_map.slots)


def _elements(schema: Schema) -> int:
    return sum(spec.elements for spec in schema.values() if spec.is_float)


def _bytes(schema: Schema) -> int:
    return sum(spec.num_bytes for spec in schema.values())


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rows(section: JsonValue) -> list[tuple[str, str]]:
    assert isinstance(section, Mapping)
    return [(str(key).replace("_", " "), _cell(key, value)) for key, value in section.items()]


def _cell(key: str, value: JsonValue) -> str:
    if isinstance(value, list):
        return ", ".join(_cell("", item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(name, item)}" for name, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool) and key != "version":
        size = f" ({value / 2**20:,.1f} MiB)" if key.endswith("bytes") else ""
        return f"{value:,}{size}"
    return str(value)


def _check_rows(checks: JsonValue) -> list[tuple[str, str]]:
    assert isinstance(checks, list)
    rows = []
    for check in checks:
        assert isinstance(check, Mapping)
        detail = f": {check['detail']}" if check["outcome"] != Outcome.PASSED.value else ""
        rows.append((str(check["name"]), f"{check['outcome']}{detail}"))
    return rows


def _table(title: str, rows: Sequence[tuple[str, str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table
