"""The same round loop on the durable grid of the service; the edges reach it through the mailbox."""

import hashlib
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from tests.coordinator.fleet import KEYS, NAMES, SCHEMA, Fleet, campaign

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import Campaign, DurableGrid
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.spool import ReplyFile, Spool
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef
from offsite.emulator.rounds.exchange import most_reply_bytes
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes
from offsite.emulator.rounds.vector import value_count
from offsite.secure.names import node_id


class Killed(BaseException):
    """Stands for `kill -9`."""


class House:
    """A coordinator's state folder with three enrolled clients, opened anew after each kill."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.fleet = folder, fleet
        self.store = Store(folder / "coordinator.sqlite")
        self.mailbox = Mailbox(self.store, Spool(folder / "spool"), lambda: fleet.now)
        for name in NAMES:
            if self.store.clients.get(name) is None:
                certificate = CertificateRef(name.encode(), fleet.now + 1e6)
                self.store.clients.add(name, KEYS[name].public.raw, certificate, fleet.now)
            self.store.clients.touch(name, "", fleet.now)

    def campaign(self, **changes: object) -> Campaign:
        grid = GrpcGrid(
            self.mailbox,
            self.store,
            1,
            lambda: self.fleet.now,
            lambda message: most_reply_bytes(message.metadata.message_type, value_count(SCHEMA)),
        )
        assert isinstance(grid, DurableGrid)
        return campaign(
            self.folder,
            self.fleet,
            grid,
            store=self.store.campaigns,
            decisions=self.store.decisions,
            results=self.store.results,
            pause=self.work,
            **changes,
        )

    def work(self, seconds: float) -> None:
        """While the coordinator pauses, every edge answers its next instruction."""
        self.fleet.pause(seconds)
        for name in NAMES:
            self.store.clients.touch(name, "", self.fleet.now)
            row = self.mailbox.next_instruction(name)
            if row is None:
                continue
            path = self.mailbox.instruction_path(name, row.message_id)
            context = Context(1, node_id(name), {}, RecordDict(), {})
            reply = self.fleet.apps()[node_id(name)](message_from_bytes(path.read_bytes()), context)
            data = message_to_bytes(reply)
            file = ReplyFile(row.message_id, len(data), hashlib.sha256(data).digest())
            upload = self.mailbox.open_upload(name, file, 0)
            assert upload is not None
            with upload:
                upload.write(data)
                self.mailbox.accept(name, upload)


def test_it_gives_the_adapter_of_the_local_engine(tmp_path: Path) -> None:
    local = run_campaign(campaign(tmp_path / "local", Fleet()))
    fleet = Fleet()
    found = run_campaign(House(tmp_path / "grpc", fleet).campaign())
    assert all(torch.equal(found.adapter[name], value) for name, value in local.adapter.items())
    assert found.standing == local.standing and len(fleet.trained) == 9
    assert not list((tmp_path / "grpc" / "spool").iterdir())  # nothing stays behind


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("pauses", range(1, 13))
def test_killed_while_updates_come_in_nobody_trains_twice(pauses: int, tmp_path: Path) -> None:
    local = run_campaign(campaign(tmp_path / "local", Fleet()))
    fleet, left = Fleet(), [pauses]

    class Mortal(House):
        def work(self, seconds: float) -> None:
            super().work(seconds)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    first = Mortal(tmp_path / "grpc", fleet)
    with pytest.raises(Killed):
        run_campaign(first.campaign())
    first.store.close()
    found = run_campaign(House(tmp_path / "grpc", fleet).campaign())
    assert all(torch.equal(found.adapter[name], value) for name, value in local.adapter.items())
    assert sorted(fleet.trained) == [(name, n, 1) for name in NAMES for n in (1, 2, 3)]
