"""Every limit of the protocol, named once. Sizes in bytes, times in seconds.

Sources: measurements in `docs/log.md` (chunk size) and the attacks of `docs/guarantees.md`
(message size, header size, counts).
"""

KIB = 1024
MIB = 1024 * KIB

CHUNK_BYTES = 256 * KIB
"""Unit of streaming, hashing and resuming. 256 KiB measured fastest over mTLS."""

CONTROL_MESSAGE_BYTES = 512 * KIB
"""Largest gRPC message of any service; a chunk with its frame fits."""

MANIFEST_BYTES = 256 * KIB
SAFETENSORS_HEADER_BYTES = 4 * MIB
"""Largest tensor header read before it was compared with the signed schema."""

ARTEFACT_BYTES = 1 << 40
BUNDLE_FILES = 64
TENSORS = 200_000
ROUND_MESSAGE_BYTES = 2 * 1024 * MIB - 1
"""Largest instruction or reply of a round, streamed to disk; protobuf encodes no more."""

CLIENTS = 900
"""Entries that a signed directory of 256 KiB can hold."""
CLIENT_NAME_CHARS = 64
INVITE_TTL_S = 24 * 3600
INVITE_ATTEMPTS = 10
"""Wrong proofs after which an invite is burnt."""

CERTIFICATE_TTL_S = 30 * 24 * 3600
RELEASE_TTL_S = 90 * 24 * 3600
CLOCK_SKEW_S = 300

CALL_DEADLINE_S = 30.0
LONG_POLL_S = 20.0
STREAM_DEADLINE_S = 3600.0
KEEPALIVE_S = 30.0
RETRIES = 8
RETRY_BASE_S = 0.25
RETRY_CAP_S = 10.0
"""Bounded exponential backoff with full jitter between `RETRY_BASE_S` and `RETRY_CAP_S`."""
