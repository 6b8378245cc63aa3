"""The enrolment service: wire messages to the authority's decisions and back.

Notable: every decision may wait for a disk flush, so it runs in a thread beside the event loop.
"""

import asyncio

from offsite.coordinator.authority import Authority, Claim
from offsite.coordinator.service.interceptor import caller
from offsite.secure.wire import to_wire
from offsite.v1.enrolment_pb2 import (
    ChallengeRequest,
    ChallengeResponse,
    EnrolRequest,
    EnrolResponse,
    GetDirectoryRequest,
    GetDirectoryResponse,
    RenewRequest,
    RenewResponse,
)
from offsite.v1.enrolment_pb2_grpc import EnrolmentServiceServicer


class EnrolmentService(EnrolmentServiceServicer):
    """Challenge and Enrol for the holders of a join token, Renew and GetDirectory for clients."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def Challenge(self, request: ChallengeRequest, context: object) -> ChallengeResponse:
        nonce = await asyncio.to_thread(self._authority.challenge, request.token_id)
        return ChallengeResponse(nonce=nonce)

    async def Enrol(self, request: EnrolRequest, context: object) -> EnrolResponse:
        claim = Claim(
            token_id=request.token_id,
            nonce=request.nonce,
            csr_der=request.csr_der,
            identity_key=request.identity_key,
            identity_proof=request.identity_proof,
            token_proof=request.token_proof,
        )
        enrolment = await asyncio.to_thread(self._authority.enrol, claim)
        return EnrolResponse(
            client_id=enrolment.client_id,
            certificate_chain_pem=enrolment.certificate_chain_pem,
            directory=to_wire(enrolment.directory),
        )

    async def Renew(self, request: RenewRequest, context: object) -> RenewResponse:
        chain = await asyncio.to_thread(self._authority.renew, caller(), request.csr_der)
        return RenewResponse(certificate_chain_pem=chain)

    async def GetDirectory(
        self, request: GetDirectoryRequest, context: object
    ) -> GetDirectoryResponse:
        signed = await asyncio.to_thread(self._authority.signed_directory)
        return GetDirectoryResponse(directory=to_wire(signed))
