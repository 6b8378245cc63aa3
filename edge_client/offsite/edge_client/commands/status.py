"""`edge-client status`: who this edge is, what it fetched, works on and has returned."""

import time
from pathlib import Path

from offsite.edge_client.inbox import Inbox
from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle.manifest import MAIN
from offsite.emulator.bundle.stated import stated_emulator, stated_manifest
from offsite.emulator.terminal import Terminal
from offsite.secure.certificates import validity_unix_s
from offsite.secure.errors import ConfigError, IntegrityError

DAY_S = 24 * 3600


def show_status(root: Path, terminal: Terminal) -> None:
    """Works while the edge is in a campaign."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; `edge-client join` makes it")
    with EdgeState.open(root, exclusive=False) as state:
        document = _document(state)
    text = "\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in document.items())
    terminal.result(text, document)


def _document(state: EdgeState) -> dict[str, object]:
    membership, now, inbox = state.membership(), time.time(), Inbox(state.rounds)
    directory = state.directory(now)
    coordinator = directory.coordinator().identity_key
    days = (validity_unix_s(state.tls_pem())[1] - now) / DAY_S
    return {
        "client": membership.client_id,
        "coordinator": membership.address,
        "coordinator_key": coordinator.short,
        "identity_key": state.identity_key().public.short,
        "directory_version": directory.version,
        "certificate_days_left": round(days, 1),
        "least_cohort": state.policy().least_cohort,
        "release": _release(state.bundle),
        "replies_acknowledged": inbox.returned(),
        "updates_not_yet_sent": len(inbox.unsent()),
        "rounds_under_way": inbox.under_way(),
    }


def _release(bundle: Path) -> str:
    try:
        manifest = stated_manifest(bundle)
    except IntegrityError:
        return "damaged; the next `edge-client join` fetches it again"
    if manifest is None:
        return "none"
    facts = manifest.facts
    emulator = stated_emulator(bundle)
    variant = "" if emulator == MAIN else f", emulator {emulator}"
    return f"version {facts.release_version} of {facts.base_model}{variant}"
