"""Receipts for privacy ledgers over mutual TLS: one ledger a client, one history, never rewritten."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from tests.coordinator.service.conftest import Coordinator

from offsite.coordinator.receipts import Receipts
from offsite.coordinator.service.ledgers import LedgerService
from offsite.edge_client.channel import open_bootstrap_channel, open_channel, translated
from offsite.edge_client.privacy.ledger_folder import ENTRIES, RECEIPT, LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.receipts import renew_receipt
from offsite.edge_client.state import EdgeState
from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError, OffsiteError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.checkpoint import (
    COORDINATOR_NAME,
    Checkpoint,
    check_receipt,
    sign_checkpoint,
)
from offsite.secure.privacy.ledger.notes import Note
from offsite.secure.privacy.ledger.verification import verify_ledger
from offsite.v1.ledger_pb2 import CountersignRequest, GetReceiptRequest
from offsite.v1.ledger_pb2_grpc import LedgerServiceStub, add_LedgerServiceServicer_to_server

Join = Callable[[Coordinator, str], EdgeState]


class Entries:
    """A ledger's leaves, and checkpoints over them."""

    def __init__(self, key: IdentityKey, *names: str) -> None:
        self.key, self.leaves = key, [merkle.leaf_digest(name.encode()) for name in names]

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(self.leaves[0], size, merkle.root(self.leaves[:size]))

    def note(self, size: int, key: IdentityKey | None = None) -> bytes:
        return sign_checkpoint(self.checkpoint(size), key or self.key)

    def proof(self, old: int, new: int) -> Sequence[bytes]:
        return () if old == new else merkle.consistency_proof(self.leaves[:new], old)


@pytest.fixture
def served(start: Callable[..., Coordinator]) -> Coordinator:
    made: list[LedgerService] = []
    coordinator = start(lambda server: add_LedgerServiceServicer_to_server(_Late(made), server))
    receipts = Receipts(coordinator.store, coordinator.keys.coordinator, coordinator.clock)
    made.append(LedgerService(receipts))
    return coordinator


class _Late:
    """The service, which needs the coordinator that it is registered with."""

    def __init__(self, made: list[LedgerService]) -> None:
        self.made = made

    def __getattr__(self, name: str) -> object:
        async def call(request: object, context: object) -> object:
            return await getattr(self.made[0], name)(request, context)

        return call


@pytest.fixture
def edge_a(served: Coordinator, join: Join) -> EdgeState:
    return join(served, "edge-a")


@pytest.fixture
def stub(edge_a: EdgeState) -> Iterator[LedgerServiceStub]:
    with open_channel(edge_a) as channel:
        yield LedgerServiceStub(channel)


def countersign(stub: LedgerServiceStub, note: bytes, proof: Sequence[bytes] = ()) -> bytes:
    with translated():
        request = CountersignRequest(checkpoint=note, consistency=proof)
        return stub.Countersign(request, timeout=10).receipt


def test_a_ledger_that_grows_gets_receipts(
    served: Coordinator, edge_a: EdgeState, stub: LedgerServiceStub
) -> None:
    ledger = Entries(edge_a.identity_key(), "a", "b", "c", "d", "e")
    assert stub.GetReceipt(GetReceiptRequest(), timeout=10).receipt == b""
    known = 0
    for size in (2, 2, 5):
        proof = ledger.proof(known, size) if known else ()
        receipt = countersign(stub, ledger.note(size), proof)
        coordinator = served.keys.coordinator.public
        assert abs(check_receipt(receipt, ledger.checkpoint(size), coordinator) - time.time()) < 60
        assert stub.GetReceipt(GetReceiptRequest(), timeout=10).receipt == receipt
        known = size


def test_of_two_histories_one_gets_a_receipt(edge_a: EdgeState, stub: LedgerServiceStub) -> None:
    key = edge_a.identity_key()
    first, second = Entries(key, "a", "b", "c"), Entries(key, "a", "x", "c", "d")
    receipt = countersign(stub, first.note(2))
    for size, proof in ((2, ()), (3, second.proof(2, 3)), (4, first.proof(2, 3)), (3, ())):
        with pytest.raises(PeerError):
            countersign(stub, second.note(size), proof)
    with pytest.raises(PeerError, match="entries are gone"):
        countersign(stub, first.note(1))
    with pytest.raises(PeerError, match="a new ledger forgets"):
        countersign(stub, Entries(key, "z", "b", "c").note(3))
    assert stub.GetReceipt(GetReceiptRequest(), timeout=10).receipt == receipt


def test_calls_at_once_do_not_fork(served: Coordinator, edge_a: EdgeState) -> None:
    key = edge_a.identity_key()
    base = Entries(key, "a")
    receipts = Receipts(served.store, served.keys.coordinator, served.clock)
    receipts.countersign("edge-a", base.note(1), ())
    histories = [Entries(key, "a", f"b{number}") for number in range(8)]
    taken: list[int] = []

    def ask(number: int) -> None:
        try:
            proof = histories[number].proof(1, 2)
            receipts.countersign("edge-a", histories[number].note(2), proof)
            taken.append(number)
        except PeerError:
            pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1


def test_nobody_signs_for_another(
    served: Coordinator, edge_a: EdgeState, join: Join, stub: LedgerServiceStub
) -> None:
    other = join(served, "edge-b")
    ledger = Entries(other.identity_key(), "a", "b")
    with pytest.raises(PeerError):
        countersign(stub, ledger.note(2))
    countersign(stub, Entries(edge_a.identity_key(), "q").note(1))
    with open_channel(other) as channel:
        theirs = LedgerServiceStub(channel).GetReceipt(GetReceiptRequest(), timeout=10)
        assert theirs.receipt == b""


@pytest.mark.parametrize(
    "note", [b"", b"nothing", b"a\n\n", b"x" * 20_000, "ö\n\n— a b\n".encode()]
)
def test_what_is_no_checkpoint_is_refused(stub: LedgerServiceStub, note: bytes) -> None:
    with pytest.raises(PeerError, match="expected"):
        countersign(stub, note)


def test_proofs_are_bounded(edge_a: EdgeState, stub: LedgerServiceStub) -> None:
    ledger = Entries(edge_a.identity_key(), "a", "b")
    countersign(stub, ledger.note(1))
    for proof in ([bytes(32)] * 65, [bytes(31)], [b""]):
        with pytest.raises(PeerError, match="at most 64 digests"):
            countersign(stub, ledger.note(2), proof)


# An edge's own ledger.


def opened(edge: EdgeState) -> LedgerFolder:
    return LedgerFolder.open(
        edge.root / "ledger", edge.identity_key(), "edge-a", "offsite", time.time
    )


def test_an_edge_keeps_its_receipts(served: Coordinator, edge_a: EdgeState) -> None:
    key, folder = served.keys.coordinator.public, opened(edge_a)
    with open_channel(edge_a) as channel:
        renew_receipt(channel, folder, key)
        renew_receipt(channel, folder, key)
        folder.settle_limit(PrivacyLimit(8.0))
        renew_receipt(channel, folder, key)
    receipts = [path.read_bytes() for path in (folder.root / "receipts").iterdir()]
    owner = edge_a.identity_key().public
    found = verify_ledger((folder.root / ENTRIES).read_bytes(), owner, receipts, key)
    assert (found.faults, found.countersigned, len(found.witnesses)) == ((), 2, 2)


def test_a_lost_answer_is_caught_up(served: Coordinator, edge_a: EdgeState) -> None:
    """The coordinator kept the receipt; the edge was killed before it had it."""
    key, folder = served.keys.coordinator.public, opened(edge_a)
    receipts = Receipts(served.store, served.keys.coordinator, served.clock)
    receipts.countersign("edge-a", folder.ledger.checkpoint(folder.key), ())
    folder.settle_limit(PrivacyLimit(8.0))
    with open_channel(edge_a) as channel:
        renew_receipt(channel, folder, key)
    assert (folder.root / "receipts" / "2").exists()


@pytest.mark.parametrize("keeps_receipts", [True, False])
def test_a_ledger_that_was_put_back_is_found_out(
    served: Coordinator, edge_a: EdgeState, keeps_receipts: bool
) -> None:
    key, folder = served.keys.coordinator.public, opened(edge_a)
    old = (folder.root / ENTRIES).read_bytes()
    folder.settle_limit(PrivacyLimit(8.0))
    with open_channel(edge_a) as channel:
        renew_receipt(channel, folder, key)
        (folder.root / ENTRIES).write_bytes(old)
        if keeps_receipts:  # found without a call
            with pytest.raises(IntegrityError, match="truncated"):
                opened(edge_a)
            return
        (folder.root / RECEIPT).unlink()
        again = opened(edge_a)
        again.settle_limit(PrivacyLimit(200.0))
        with pytest.raises(IntegrityError, match="put back to an older state"):
            renew_receipt(channel, again, key)


def test_a_receipt_that_this_edge_never_signed_is_the_coordinators_lie(
    served: Coordinator, edge_a: EdgeState
) -> None:
    """It would have the owner believe that its ledger was put back."""
    folder, key = opened(edge_a), served.keys.coordinator
    forger = Entries(IdentityKey.from_seed(b"f" * 32), "a", "b", "c")
    forged = Note.from_bytes(forger.note(3)).cosigned_by(key, COORDINATOR_NAME, 1)
    served.store.receipts.add("edge-a", forged.to_bytes(), 1.0)
    with open_channel(edge_a) as channel, pytest.raises(SignatureError):
        renew_receipt(channel, folder, key.public)


def test_asking_again_costs_no_row(served: Coordinator, edge_a: EdgeState) -> None:
    receipts = Receipts(served.store, served.keys.coordinator, served.clock)
    note = Entries(edge_a.identity_key(), "a", "b").note(2)
    first = receipts.countersign("edge-a", note, ())
    served.clock.offset_s = 60.0
    assert receipts.countersign("edge-a", note, ()) == first


def test_a_coordinator_cannot_hand_over_another_receipt(
    served: Coordinator, edge_a: EdgeState
) -> None:
    folder = opened(edge_a)
    with open_channel(edge_a) as channel, pytest.raises(PeerError):
        renew_receipt(channel, folder, IdentityKey.from_seed(bytes(32)).public)
    assert not (folder.root / RECEIPT).exists()


def test_a_stranger_gets_nothing(served: Coordinator) -> None:

    with open_bootstrap_channel(served.invite("edge-c"), time.time()) as channel:
        stub = LedgerServiceStub(channel)
        with pytest.raises(OffsiteError), translated():
            stub.GetReceipt(GetReceiptRequest(), timeout=10)
