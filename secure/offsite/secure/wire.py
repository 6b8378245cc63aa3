"""Envelopes as protobuf messages: how they travel, while `envelope.py` says how they are stored."""

from offsite.secure.envelope import Envelope
from offsite.v1.envelope_pb2 import SignedEnvelope


def to_wire(signed: Envelope) -> SignedEnvelope:
    """The envelope as its protobuf message."""
    return SignedEnvelope(
        payload_type=signed.payload_type,
        payload=signed.payload,
        key_id=signed.key_id,
        signature=signed.signature,
    )


def from_wire(message: SignedEnvelope) -> Envelope:
    """The envelope in a protobuf message; not verified yet."""
    return Envelope(message.payload_type, message.payload, message.key_id, message.signature)
