"""Receipts for privacy ledgers: wire messages to `receipts.py` and back, beside the event loop."""

import asyncio

from offsite.coordinator.receipts import Receipts
from offsite.coordinator.service.interceptor import caller
from offsite.v1.ledger_pb2 import (
    CountersignRequest,
    CountersignResponse,
    GetReceiptRequest,
    GetReceiptResponse,
)
from offsite.v1.ledger_pb2_grpc import LedgerServiceServicer


class LedgerService(LedgerServiceServicer):
    """GetReceipt and Countersign, each for the caller's own ledger alone."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts

    async def GetReceipt(self, request: GetReceiptRequest, context: object) -> GetReceiptResponse:
        receipt = await asyncio.to_thread(self._receipts.last, caller())
        return GetReceiptResponse(receipt=receipt)

    async def Countersign(
        self, request: CountersignRequest, context: object
    ) -> CountersignResponse:
        receipt = await asyncio.to_thread(
            self._receipts.countersign, caller(), request.checkpoint, list(request.consistency)
        )
        return CountersignResponse(receipt=receipt)
