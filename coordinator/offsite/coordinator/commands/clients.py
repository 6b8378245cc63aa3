"""`coordinator invite` and `coordinator revoke`: who may take part."""

from dataclasses import dataclass
from pathlib import Path

from offsite.coordinator.authority import Authority
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.durable import write_atomic
from offsite.emulator.terminal import Terminal


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the command line said; an empty address means the configured one."""

    name: str
    hours: float
    address: str
    out: Path | None


def invite_client(root: Path, invitation: Invitation, terminal: Terminal) -> None:
    """Makes a token; it is shown once and not stored."""
    name, hours, out = invitation.name, invitation.hours, invitation.out
    with open_workspace(root, exclusive=False) as workspace:
        authority = Authority(workspace.keys, workspace.store)
        address = invitation.address or workspace.address
        token = authority.invite(name, address, hours * 3600).to_text()
    if out is not None:
        write_atomic(out, f"{token}\n".encode())
    terminal.note(
        f"one-time token for {name}, valid {hours:g} h; hand it over on a channel you trust: "
        f"whoever uses it first becomes {name}"
    )
    shown = token if out is None else f"written to {out}"
    terminal.result(shown, {"client": name, "token": token, "hours": hours})


def revoke_client(root: Path, name: str, reason: str, terminal: Terminal) -> None:
    """Shuts a client out; the directory says so from now on."""
    with open_workspace(root, exclusive=False) as workspace:
        authority = Authority(workspace.keys, workspace.store)
        authority.revoke(name, reason)
        version = authority.directory().version
    terminal.result(
        f"{name} is revoked as of directory version {version}",
        {"client": name, "reason": reason, "directory_version": version},
    )
