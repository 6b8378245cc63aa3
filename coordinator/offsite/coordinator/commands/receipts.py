"""`coordinator receipts`: the last receipt for a data owner's privacy ledger, for an auditor.

The coordinator kept it when it counter-signed, so it does not come from the owner: a ledger that forgot
what stood in it then does not fit (`privacy-audit ledger --receipt FILE`). It tells how many entries there
were, and nothing else. The keys that an audit asks for are said with it; whoever doubts this coordinator
takes them from a signed directory.
"""

from pathlib import Path

from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.emulator.durable import write_atomic
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.checkpoint import open_checkpoint


def write_receipt(root: Path, name: str, out: Path, terminal: Terminal) -> None:
    """Writes the newest receipt of a client.

    Raises:
        ConfigError: there is no such client, it has no receipt, or there is no folder for the file.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, found no {out.parent}")
    with open_workspace(root, exclusive=False) as workspace:
        owner, receipt = _last(workspace, name)
        coordinator = workspace.keys.coordinator.public
    entries = open_checkpoint(receipt, owner).size
    write_atomic(out, receipt)
    keys = {"owner_key": owner.raw.hex(), "coordinator_key": coordinator.raw.hex()}
    terminal.note(f"--key {keys['owner_key']} --coordinator {keys['coordinator_key']}")
    terminal.result(
        f"{out}: {name}'s ledger had {entries} entries; check with `privacy-audit ledger LEDGER "
        f"--receipt {out}` and the keys above",
        {"client": name, "out": str(out), "entries": entries, **keys},
    )


def _last(workspace: Workspace, name: str) -> tuple[IdentityPublicKey, bytes]:
    row = workspace.store.clients.get(name)
    if row is None:
        raise ConfigError(f"expected the name of a client, found {name!r}; `coordinator status`")
    receipt = workspace.store.receipts.last(name)
    if receipt is None:
        raise ConfigError(
            f"{name} has had no ledger counter-signed: it tunes without --epsilon, or has not begun"
        )
    return IdentityPublicKey(row.identity_key), receipt
