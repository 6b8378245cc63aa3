"""Writes the test vectors of the formats, or checks with `--check` that they are current.

Each file is one JSON object: what it is, the input, and either what comes out or `fails_at`, the
layer that has to refuse it: which function, with which error, saying what. A `bad_*` file has
exactly one thing wrong with it.

The formats are written out here a second time, from their documentation and with nothing but
`struct`, `json` and Ed25519 itself, so that a mistake in the product cannot hide in its own
vectors. Only the CA's certificate in a token is the product's.

    python tests/vectors/generate.py [--check]
"""

import base64
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from offsite.secure.certificates import create_authority

HERE = Path(__file__).parent
NOW_UNIX_S = 1_780_000_000.0
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493

Vector = dict[str, object]
Vectors = Iterator[tuple[str, Vector]]


def key_of(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public_of(number: int) -> bytes:
    return key_of(number).public_key().public_bytes_raw()


def refused(layer: str, error: str, says: str) -> dict[str, str]:
    return {"layer": layer, "error": error, "says": says}


def with_length(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


# --- envelope ------------------------------------------------------------------------------------

MANIFEST = b"application/vnd.offsite.manifest+json"


def envelope(
    payload_type: bytes,
    payload: bytes,
    *,
    domain: bytes = b"OFFSITE/1",
    magic: bytes = b"OFFSENV1",
    key_id: bytes | None = None,
) -> bytes:
    fields = with_length(payload_type) + with_length(payload)
    signature = key_of(1).sign(domain + fields)
    return magic + fields + (key_id or hashlib.sha256(public_of(1)).digest()) + signature


def envelope_vectors() -> Vectors:
    payload = b'{"release":1}'
    good = envelope(MANIFEST, payload)
    lax = int.from_bytes(good[-32:], "little") + ED25519_ORDER

    def case(what: str, data: bytes, fails_at: dict[str, str] | None, out: bytes = b"") -> Vector:
        return {
            "what": what,
            "envelope": data.hex(),
            "expected_type": MANIFEST.decode(),
            "public_key": public_of(1).hex(),
            "payload": None if fails_at else out.hex(),
            "fails_at": fails_at,
        }

    def framing(says: str) -> dict[str, str]:
        return refused("from_bytes", "IntegrityError", says)

    def signature(says: str) -> dict[str, str]:
        return refused("verify", "SignatureError", says)

    invalid = signature("does not verify")
    other_type = envelope(b"application/vnd.offsite.round-plan+json", payload)
    long_length = good[:8] + struct.pack(">Q", 2**64 - 1) + good[16:]
    other_id = hashlib.sha256(public_of(2)).digest()
    yield "good", case("a manifest", good, None, payload)
    yield "good_empty", case("an empty payload", envelope(MANIFEST, b""), None)
    yield (
        "bad_magic",
        case("another magic", envelope(MANIFEST, payload, magic=b"OFFSENV2"), framing("OFFSENV1")),
    )
    yield "bad_cut", case("the last byte is missing", good[:-1], framing("was cut"))
    yield "bad_trailing", case("one byte too many", good + b"\x00", framing("appended"))
    yield "bad_type_length", case("a type of 2^64-1 bytes", long_length, framing("at most 128"))
    yield "bad_type_empty", case("no type", envelope(b"", payload), framing("media type"))
    yield (
        "bad_type_control",
        case("a line break", envelope(b"a\nb", payload), framing("media type")),
    )
    yield "bad_type_other", case("a signed plan", other_type, signature("something else"))
    yield (
        "bad_key_id",
        case(
            "another signer's id",
            envelope(MANIFEST, payload, key_id=other_id),
            signature("signed by"),
        ),
    )
    yield "bad_payload", case("a changed payload", good.replace(b":1}", b":2}"), invalid)
    yield (
        "bad_domain",
        case("signed without the domain", envelope(MANIFEST, payload, domain=b""), invalid),
    )
    yield (
        "bad_signature_form",
        case("S + L instead of S", good[:-32] + lax.to_bytes(32, "little"), invalid),
    )


# --- token ---------------------------------------------------------------------------------------


def token_body(**changes: bytes) -> bytes:
    authority = create_authority(b"\x01" * 32, b"\x11" * 16, NOW_UNIX_S)
    fields = {
        "token_id": b"\x21" * 16,
        "secret": b"\x22" * 32,
        "bootstrap_seed": b"\x23" * 32,
        "directory_key": public_of(1),
        "address": b"coordinator.example:8443",
        "ca_cert_der": authority.cert_der,
    } | changes
    for name in ("address", "ca_cert_der"):
        fields[name] = struct.pack(">H", len(fields[name])) + fields[name]
    return b"".join(fields.values())


def token_text(body: bytes, prefix: str = "offsite1.") -> str:
    checksum = hashlib.sha256(prefix.encode() + body).digest()[:8]
    return prefix + base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()


def token_vectors() -> Vectors:
    good = token_text(token_body())
    last = good[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def case(what: str, text: str, says: str | None) -> Vector:
        return {
            "what": what,
            "token": text,
            "body": None if says else token_body().hex(),
            "fails_at": refused("parse", "TokenError", says) if says else None,
        }

    yield "good", case("a token", good, None)
    yield "good_spaces", case("white space around it", f"  {good}\n", None)
    yield (
        "bad_version",
        case("another version", token_text(token_body(), "offsite2."), "begins with"),
    )
    yield "bad_cut", case("the last character is missing", good[:-1], "cut or mistyped")
    yield (
        "bad_mistyped",
        case(
            "a changed character",
            good[:100] + ("A" if good[100] != "A" else "B") + good[101:],
            "mistyped",
        ),
    )
    yield (
        "bad_alphabet",
        case("a sign outside base64url", good[:100] + "!" + good[101:], "mistyped"),
    )
    yield (
        "bad_loose_bits",
        case(
            "bits that base64 ignores", good[:-1] + alphabet[alphabet.index(last) ^ 1], "mistyped"
        ),
    )
    yield "bad_padding", case("padding", good + "=" * (-(len(good) - 9) % 4), "mistyped")
    yield "bad_short_body", case("a body that ends early", token_text(token_body()[:60]), "cut one")
    yield "bad_trailing", case("a byte after the end", token_text(token_body() + b"\x00"), "after")
    yield "bad_address", case("no port", token_text(token_body(address=b"coordinator")), "address")
    yield (
        "bad_certificate",
        case("no certificate", token_text(token_body(ca_cert_der=b"none")), "CA certificate"),
    )
    neutral = (1).to_bytes(32, "little")
    yield (
        "bad_directory_key",
        case("a key of small order", token_text(token_body(directory_key=neutral)), "small order"),
    )


# --- directory -----------------------------------------------------------------------------------

DIRECTORY = b"application/vnd.offsite.directory+json"
Document = dict[str, object]


def entry(client_id: str, number: int, **changes: object) -> Document:
    return {
        "client_id": client_id,
        "identity_key": public_of(number).hex(),
        "role": "client",
        "status": "active",
        "since_unix_s": NOW_UNIX_S,
        "reason": "",
        "tls_fingerprint": None,
    } | changes


def document(*entries: Document, **changes: object) -> bytes:
    made = {
        "format": 1,
        "version": 3,
        "expires_unix_s": NOW_UNIX_S + 86400.0,
        "entries": list(entries),
    } | changes
    return json.dumps(made, sort_keys=True, separators=(",", ":")).encode()


def directory_vectors() -> Vectors:
    coordinator = entry("coordinator", 2, role="coordinator")
    one, two = entry("edge-1", 3), entry("edge-2", 4)
    revoked = entry("edge-1", 3, status="revoked", reason="lost laptop")
    before = document(coordinator, one, two)

    def case(
        what: str,
        payload: bytes,
        fails_at: dict[str, str] | None = None,
        known: bytes | None = None,
        payload_type: bytes = DIRECTORY,
    ) -> Vector:
        return {
            "what": what,
            "now_unix_s": NOW_UNIX_S,
            "authority_key": public_of(1).hex(),
            "known": None if known is None else envelope(DIRECTORY, known).hex(),
            "envelope": envelope(payload_type, payload).hex(),
            "version": None if fails_at else json.loads(payload)["version"],
            "fails_at": fails_at,
        }

    def form(says: str) -> dict[str, str]:
        return refused("open_directory", "IntegrityError", says)

    def follows(says: str) -> dict[str, str]:
        return refused("check_successor", "IdentityError", says)

    yield "good", case("a coordinator and two clients", before)
    yield (
        "good_successor",
        case(
            "one client revoked, one added",
            document(coordinator, revoked, two, entry("edge-3", 5), version=4),
            known=before,
        ),
    )
    yield "good_same", case("nothing new", before, known=before)
    yield (
        "bad_type",
        case(
            "a signed manifest",
            before,
            refused("open_directory", "SignatureError", "something else"),
            payload_type=MANIFEST,
        ),
    )
    yield (
        "bad_expired",
        case(
            "expired an hour ago",
            document(coordinator, expires_unix_s=NOW_UNIX_S - 3600),
            refused("open_directory", "ExpiredError", "expired 3600 s ago"),
        ),
    )
    yield "bad_not_json", case("no JSON", b"{", form("document that is none"))
    yield (
        "bad_spaces",
        case("another encoding", json.dumps(json.loads(before)).encode(), form("one encoding")),
    )
    yield "bad_unknown_field", case("an extra field", document(one, extra=1), form("one encoding"))
    yield "bad_format", case("a later format", document(one, format=2), form("format 2"))
    yield "bad_version", case("version is a text", document(one, version="3"), form("no integer"))
    yield "bad_order", case("entries out of order", document(two, one), form("in order"))
    yield (
        "bad_repeated_id",
        case("one id twice", document(one, entry("edge-1", 5)), form("one id each")),
    )
    yield (
        "bad_repeated_key",
        case("one key twice", document(one, entry("edge-2", 3)), form("one key twice")),
    )
    yield "bad_name", case("a name with a slash", document(entry("a/b", 3)), form("client name"))
    yield "bad_role", case("an unknown role", document(entry("a", 3, role="root")), form("Role"))
    yield (
        "bad_weak_key",
        case(
            "a key of small order",
            document(entry("a", 3, identity_key="00" * 32)),
            form("small order"),
        ),
    )
    yield (
        "bad_rollback",
        case(
            "an older version",
            document(coordinator, one, version=2),
            follows("newer"),
            known=before,
        ),
    )
    yield (
        "bad_second_history",
        case(
            "the same version, other entries",
            document(coordinator, one, entry("edge-2", 6)),
            follows("other entries"),
            known=before,
        ),
    )
    yield (
        "bad_vanished",
        case(
            "an entry is gone", document(coordinator, two, version=4), follows("gone"), known=before
        ),
    )
    yield (
        "bad_changed_key",
        case(
            "a key was replaced",
            document(coordinator, one, entry("edge-2", 6), version=4),
            follows("identity key changed"),
            known=before,
        ),
    )
    yield (
        "bad_unrevoked",
        case(
            "a revoked client comes back",
            document(coordinator, one, version=4),
            follows("revocation"),
            known=document(coordinator, revoked),
        ),
    )


FOLDERS: dict[str, Callable[[], Vectors]] = {
    "directory": directory_vectors,
    "envelope": envelope_vectors,
    "token": token_vectors,
}


def build() -> dict[str, str]:
    """Every vector file by its path under this folder."""
    return {
        f"{folder}/{name}.json": json.dumps(vector, indent=1) + "\n"
        for folder, vectors in FOLDERS.items()
        for name, vector in vectors()
    }


def differences(wanted: dict[str, str]) -> list[str]:
    """Files of the generated folders that are missing, different, or too many."""
    found = {
        path.relative_to(HERE).as_posix(): path.read_text()
        for folder in FOLDERS
        for path in (HERE / folder).glob("*")
    }
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def main(arguments: list[str]) -> int:
    wanted = build()
    wrong = differences(wanted)
    if arguments == ["--check"]:
        for name in wrong:
            print(f"not as generated: {name}")
        return 1 if wrong else 0
    for name in wrong:
        path = HERE / name
        if name in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[name])
        else:
            path.unlink()
        print(f"wrote {name}" if name in wanted else f"removed {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
