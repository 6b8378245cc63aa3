"""Having the ledger counter-signed: when a session begins, and after a round's last commit.

The coordinator's last receipt is asked for first. If this ledger does not continue it, the folder was
put back to an older state (a backup, a clone of the machine), and what was spent since would be
forgotten: nothing may be spent then. A coordinator that does not answer stops nothing; the next call
catches up.
"""

from collections.abc import Callable

import grpc

from offsite.edge_client.channel import translated
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.resume import Persistence
from offsite.secure import limits
from offsite.secure.errors import IntegrityError, TransportError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.checkpoint import check_receipt, open_checkpoint
from offsite.secure.privacy.ledger.notes import NOTE_BYTES
from offsite.v1.ledger_pb2 import CountersignRequest, GetReceiptRequest
from offsite.v1.ledger_pb2_grpc import LedgerServiceStub


def renew_receipt(
    channel: grpc.Channel, folder: LedgerFolder, coordinator: IdentityPublicKey
) -> None:
    """Have everything that stands in the ledger counter-signed, and keep the receipt.

    Raises:
        IntegrityError: the coordinator holds a receipt for entries that this ledger does not have.
        PeerError: what came back is no receipt for this ledger.
        TransportError: no answer.
    """
    stub, known = LedgerServiceStub(channel), 0
    earlier = Persistence().run(
        lambda: stub.GetReceipt(GetReceiptRequest(), timeout=limits.CALL_DEADLINE_S)
    )
    if earlier.receipt:
        known = _known_size(folder, _bounded(earlier.receipt), coordinator)
    head = folder.ledger.head()
    request = CountersignRequest(
        checkpoint=folder.ledger.checkpoint(folder.key), consistency=folder.ledger.growth(known)
    )
    with translated():
        answer = stub.Countersign(request, timeout=limits.CALL_DEADLINE_S)
    check_receipt(_bounded(answer.receipt), head, coordinator)
    folder.keep_receipt(answer.receipt, head.size)


def receipt_renewed(
    channel: grpc.Channel,
    folder: LedgerFolder,
    coordinator: IdentityPublicKey,
    tell: Callable[[str], None],
) -> None:
    """The same; where nobody answers, the owner is told and the next call catches up."""
    try:
        renew_receipt(channel, folder, coordinator)
    except TransportError as error:
        tell(f"the privacy ledger was not counter-signed, and will be later: {error}")


def _known_size(folder: LedgerFolder, receipt: bytes, coordinator: IdentityPublicKey) -> int:
    """How many entries the coordinator has seen, if they are the first ones of this ledger."""
    stated = open_checkpoint(receipt, folder.key.public)  # nobody else can have signed it
    check_receipt(receipt, stated, coordinator)
    ledger = folder.ledger
    if stated.size > ledger.size or ledger.head(stated.size) != stated:
        raise IntegrityError(
            f"expected a ledger that continues the {stated.size} entries for which the coordinator "
            f"holds a receipt, found {ledger.size} others: {folder.root} was put back to an older "
            "state, or is a copy. What was spent since would be forgotten: restore the newest ledger"
        )
    return stated.size


def _bounded(receipt: bytes) -> bytes:
    if len(receipt) > NOTE_BYTES:
        raise IntegrityError(f"expected a receipt of at most {NOTE_BYTES} bytes, found more")
    return receipt
