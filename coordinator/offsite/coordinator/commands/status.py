"""`coordinator status`: release, clients, invitations and rounds as the database has them.

Rule: what a client says of itself is shown as it is, never interpreted: no markup, no escapes.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offsite.coordinator.leases import is_gone
from offsite.coordinator.policy.eligibility import MIB, Eligibility, Facts
from offsite.coordinator.policy.orders import Stage, described, stage_of
from offsite.coordinator.store import Store
from offsite.coordinator.tables.campaigns import CampaignRow
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.bundle.manifest import Manifest
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.printable import printable
from offsite.emulator.strict_json import JsonValue
from offsite.emulator.terminal import Terminal

LEAK_ROWS = ("zero_shot", "tuned", "healed", "kept", "verbatim")
Rows = list[dict[str, object]]
ROUND_COLUMNS = (
    "round",
    "attempt",
    "state",
    "updates",
    "refused",
    "late",
    "dropped",
    "gate_acc",
    "full_acc",
)


def show_status(root: Path, terminal: Terminal) -> None:
    """Works while the coordinator serves."""
    with open_workspace(root, exclusive=False) as workspace:
        campaign = workspace.store.campaigns.current()
        document: dict[str, object] = {
            "release": _release(workspace.state.bundle),
            "campaign": _campaign(workspace.store, campaign),
            "clients": _clients(workspace.store, workspace.config.policy.settings.eligibility),
            "invitations": _invitations(workspace.store),
            "rounds": _rounds(workspace.store, campaign),
        }
    terminal.result(render(document), document)


def _release(bundle: Path) -> dict[str, object] | None:
    manifest = stated_manifest(bundle)
    if manifest is None:
        return None
    return {
        "version": manifest.facts.release_version,
        "base_model": manifest.facts.base_model,
        "method": manifest.facts.method,
        "ratio": manifest.facts.ratio,
        "packing": manifest.packing.value,
        "bytes": manifest.bundle_bytes,
        "tuning_bytes": manifest.tuning_bytes,
        "variants": ", ".join(entry.name for entry in manifest.variants),
        **_leak(manifest),
        "expires_in_days": round((manifest.facts.expires_unix_s - time.time()) / 86400, 1),
    }


def _leak(manifest: Manifest) -> dict[str, object]:
    """The figures of the leak report, as they were signed."""
    leak = manifest.facts.provenance.get("leak")
    figures = leak if isinstance(leak, Mapping) else {}
    return {f"leak_{name}": _stated(figures.get(name)) for name in LEAK_ROWS}


def _stated(figure: JsonValue) -> object:
    value = figure.get("value") if isinstance(figure, Mapping) else None
    return "not measured" if value is None else value


def _campaign(store: Store, row: CampaignRow | None) -> dict[str, object] | None:
    """What it is doing, its owner's orders considered."""
    if row is None:
        return None
    orders = store.campaigns.orders(row.campaign_id)
    stage = stage_of(Stage(row.state.value), orders)
    reason = described(orders) if stage is Stage.PAUSED else row.reason
    return {"number": row.campaign_id, "state": stage.value, "reason": reason}


def _clients(store: Store, eligibility: Eligibility) -> Rows:
    now = time.time()
    return [
        {
            "name": client.client_id,
            "status": client.status.value,
            "seen_s_ago": None
            if client.last_seen_unix_s is None
            else round(now - client.last_seen_unix_s, 1),
            "gone": is_gone(client.last_seen_unix_s, now),
            "doing": client.doing,
            **_stated_facts(client.facts, eligibility),
        }
        for client in store.clients.all()
    ]


def _stated_facts(facts: Facts, eligibility: Eligibility) -> dict[str, object]:
    memory, examples = facts.free_memory_bytes, facts.examples
    stated: dict[str, object] = {
        "version": facts.version or None,
        "memory_mib": None if memory is None else memory // MIB,
        "examples": examples,
        "not_asked": eligibility.why_not(facts) or None,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _invitations(store: Store) -> Rows:
    now = time.time()
    return [
        {"name": invite.client_id, "hours_left": round((invite.expires_unix_s - now) / 3600, 1)}
        for invite in store.invites.all()
        if invite.used_by is None and invite.expires_unix_s > now
    ]


def _rounds(store: Store, campaign: CampaignRow | None) -> Rows:
    if campaign is None:
        return []
    return [
        {"round": r.round, "attempt": r.attempt, "state": r.state.value, **r.metrics}
        for r in store.campaigns.rounds(campaign.campaign_id)
    ]


def render(document: Mapping[str, object]) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for name, value in document.items():
        if isinstance(value, dict):
            shown = ", ".join(f"{k} {v}" for k, v in value.items() if v != "")
            parts.append(Text(printable(f"{name}: {shown}")))
        elif isinstance(value, list) and value:
            parts.append(_round_table(value) if name == "rounds" else _table(name, value))
        else:
            parts.append(Text(f"{name}: none"))
    return Group(*parts)


def _table(name: str, rows: Rows) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=name, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _round_table(rows: Rows) -> Table:
    """The figures that decide; `--json` has all."""
    return _table("rounds", [{column: row.get(column) for column in ROUND_COLUMNS} for row in rows])


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, float):
        return Text(str(int(value)) if value.is_integer() else f"{value:.4f}")
    return Text(printable(str(value)))
