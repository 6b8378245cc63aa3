"""The messages of a secure sum as Flower records: opaque bytes under one name.

    step          instruction's body                         reply's body
    train         (`instruction`, with the signed terms)     signed advertisement
    share         directory, advertisements of the roster    signed sharing, parts
    acknowledge   deliveries                                 signed acknowledgement
    mask          signed members                             signed upload header; masked words
    confirm       signed upload headers                      signed confirmation
    reveal        signed confirmations                       signed reveal

Each but the first has the Flower message type `train.<step>` and a record "secure" with the digest
of the sum's terms and the body; the masked words of a reply travel as one array beside it. Engines
carry them unread, Flower's own included.

Keys are made after tuning: whoever drops out while it tunes, which takes hours, is not in the
roster and costs nobody a mask, and no secret of the sum lies on a disk meanwhile. The steps after
tuning take five short exchanges (`docs/adr/0006-secure-aggregation.md`).
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from offsite.emulator.rounds.stored_array import pieces_of, size_of
from offsite.secure.aggregation.encoding import DIGEST_BYTES, Reader, pack, pack_list
from offsite.secure.aggregation.keystream import WORD_BYTES, Words
from offsite.secure.aggregation.messages import MESSAGE_BYTES, PART_BYTES
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.secure.errors import PeerError

SECURE: Final = "secure"
_SUM: Final = "sum"
_BODY: Final = "body"
_MASKED: Final = "masked"
_WORDS: Final = "words"
_STYPE: Final = "offsite.masked"
_DELIVERY_BYTES: Final = 64 * 1024
_BODY_BYTES: Final = 64 << 20
_REPLY_BYTES: Final = 4 << 20
"""The largest reply but a masked vector: 255 parts of 4 KiB, their envelope, Flower's frame."""


class Action(Enum):
    """The steps after tuning, in their order; the value is Flower's action name."""

    SHARE = "share"
    ACKNOWLEDGE = "acknowledge"
    MASK = "mask"
    CONFIRM = "confirm"
    REVEAL = "reveal"

    @property
    def message_type(self) -> str:
        return f"train.{self.value}"


def most_reply_bytes(message_type: str, values: int) -> int:
    """What a reply to an instruction may be at most, where an update has `values` values.

    Known before it comes, so that nobody fills a disk.
    """
    if message_type == Action.MASK.message_type:
        return _REPLY_BYTES + WORD_BYTES * (values + 1)
    return _REPLY_BYTES


def exchange_content(terms_digest: bytes, body: bytes, words: Words | None = None) -> RecordDict:
    """What an instruction or a reply of one step holds."""
    content = RecordDict({SECURE: ConfigRecord({_SUM: terms_digest, _BODY: body})})
    if words is not None:
        data = words.astype("<u4", copy=False).tobytes()
        array = Array(dtype="uint32", shape=(len(words),), stype=_STYPE, data=data)
        content[_MASKED] = ArrayRecord({_WORDS: array})
    return content


def read_exchange(message: Message) -> tuple[bytes, bytes]:
    """The digest of the terms and the body.

    Raises:
        PeerError: the other side reported an error, or the message is no step of a sum.
    """
    if message.has_error():
        reason = (message.error.reason or "no reason given")[:500]
        raise PeerError(f"the client could not do it: {reason}")
    record = message.content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise PeerError("expected a step of a secure sum, found another message")
    digest, body = record.get(_SUM), record.get(_BODY)
    if not isinstance(digest, bytes) or len(digest) != DIGEST_BYTES or not isinstance(body, bytes):
        raise PeerError("expected the digest of a sum and a body, found something else")
    if len(body) > _BODY_BYTES:
        raise PeerError(f"expected a body of at most {_BODY_BYTES} bytes, found {len(body)}")
    return digest, body


class MaskedWords:
    """The masked words of a reply, uint32, which need not be in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def num_bytes(self) -> int:
        """As they travelled."""
        return size_of(self._array)

    def pieces(self) -> Iterator[Words]:
        """All words in order, some at a time; may be asked for again."""
        return (np.frombuffer(piece, "<u4") for piece in pieces_of(self._array))


def read_words(message: Message, count: int) -> MaskedWords:
    """The masked words of a reply.

    Raises:
        PeerError: there are none, or another number of them.
    """
    record = message.content.get(_MASKED)
    array = record.get(_WORDS) if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _STYPE or array.shape != (count,):
        raise PeerError(f"expected {count} masked words in the reply, found something else")
    if size_of(array) != WORD_BYTES * count:
        raise PeerError(f"expected {WORD_BYTES * count} bytes of masked words in the reply")
    return MaskedWords(array)


def pack_share_request(directory: bytes, advertisements: Sequence[bytes]) -> bytes:
    return pack((directory, pack_list(advertisements)))


def read_share_request(body: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The signed directory, and the signed advertisements of the roster."""
    reader = Reader(body, "request for shares")
    directory = reader.field("directory", 2 * MESSAGE_BYTES)
    advertisements = reader.items("advertisements", MOST_MEMBERS, MESSAGE_BYTES)
    reader.close()
    return directory, advertisements


def pack_sharing(sharing: bytes, parts: Sequence[bytes]) -> bytes:
    return pack((sharing, pack_list(parts)))


def read_sharing(body: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The signed sharing and its parts."""
    reader = Reader(body, "sharing")
    sharing = reader.field("sharing", MESSAGE_BYTES)
    parts = reader.items("parts", MOST_MEMBERS, PART_BYTES)
    reader.close()
    return sharing, parts


def pack_messages(messages: Sequence[bytes]) -> bytes:
    return pack((pack_list(messages),))


def read_messages(body: bytes) -> tuple[bytes, ...]:
    """Signed messages, or packed deliveries."""
    reader = Reader(body, "messages")
    found = reader.items("messages", MOST_MEMBERS, max(MESSAGE_BYTES, _DELIVERY_BYTES))
    reader.close()
    return found
