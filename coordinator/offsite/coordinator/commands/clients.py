"""`coordinator invite` and `coordinator revoke`: who may take part."""

from dataclasses import dataclass
from pathlib import Path

from offsite.coordinator.authority import Authority
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.durable import write_atomic
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the command line said; an empty address means the configured one."""

    name: str
    hours: float
    address: str
    out: Path | None


def invite_client(root: Path, invitation: Invitation, terminal: Terminal) -> None:
    """Makes a token; it is shown once, or written where `out` says, and not stored."""
    name, hours, out = invitation.name, invitation.hours, invitation.out
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out}: expected a file in a folder that exists, found no {out.parent}")
    with open_workspace(root, exclusive=False) as workspace:
        authority = Authority(workspace.keys, workspace.store)
        rejoins = authority.is_member(name)
        address = invitation.address or workspace.address
        token = authority.invite(name, address, hours * 3600).to_text()
    terminal.note(f"one-time token for {name}, valid {hours:g} h; {_advice(name, rejoins)}")
    document: dict[str, object] = {"client": name, "hours": hours, "address": address}
    if out is None:
        terminal.result(token, {**document, "token": token})
        return
    write_atomic(out, f"{token}\n".encode())
    terminal.result(f"written to {out}", {**document, "out": str(out)})


def _advice(name: str, rejoins: bool) -> str:
    if rejoins:
        return f"{name} is a client already: only the state folder it joined with can use it"
    return f"hand it over on a channel you trust: whoever uses it first becomes {name}"


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
