"""P-256 certificates for TLS: the coordinator's CA, its server, its clients, the bootstrap peers.

Deterministic: keys come from seeds, serials are arguments or come from seeds, and ECDSA nonces
follow RFC 6979, so the library draws nothing and the same arguments give the same bytes.

Rules it enforces: P-256 only (gRPC has no Ed25519 certificates); a client certificate is good for
clients alone and a server certificate for servers alone; of a signing request only the key is
used, never its names. gRPC in Python has no revocation lists, so certificates are short-lived and
every call is checked against the directory.

Who may do what follows from the one SPIFFE URI in the certificate: see `names`. Sources: RFC 5280,
FIPS 186-5 A.4.1 (scalar from seed), RFC 6979.
"""

import contextlib
import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from offsite.secure import limits, names
from offsite.secure.errors import ConfigError, IdentityError, SignatureError

SEED_BYTES = 32
SERIAL_BYTES = 16
CSR_BYTES = 4096
AUTHORITY_TTL_S = 10 * 365 * 24 * 3600

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BOOTSTRAP_START_UNIX_S = 1_735_689_600.0  # 2025-01-01; the same on both sides, always valid
_BOOTSTRAP_TTL_S = 100 * 365 * 24 * 3600

_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What `cryptography` raises for a certificate or request that is damaged or of another kind."""
_UNUSABLE_NAMES = (
    *_UNREADABLE,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

TlsKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: what `ca.pem` and `ca.key` hold. `repr` hides the key."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def cert_der(self) -> bytes:
        return _load(self.cert_pem).public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True, slots=True)
class Credential:
    """A TLS certificate and its key. `repr` hides the key."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Profile:
    """What an issued certificate says and may be used for."""

    common_name: str
    alternative_names: tuple[x509.GeneralName, ...]
    usage: x509.ObjectIdentifier


def tls_key_from_seed(seed: bytes) -> TlsKey:
    """The P-256 key of a 32-byte seed: HKDF to 48 bytes, modulo n - 1, plus 1."""
    wide = int.from_bytes(_derive(seed, b"offsite/1 tls key", 48), "big")
    return ec.derive_private_key(wide % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def tls_key_pem(key: TlsKey) -> bytes:
    """The key as PKCS#8 PEM, not encrypted; the caller guards the file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def create_authority(seed: bytes, serial: bytes, now_unix_s: float) -> Authority:
    """A new CA for ten years. `seed` is 32 secret random bytes, `serial` 16 random ones."""
    return _self_signed(seed, "Offsite CA", serial, now_unix_s, AUTHORITY_TTL_S)


def bootstrap_authority(seed: bytes) -> Authority:
    """The CA that both sides derive from a token's bootstrap seed; the same bytes on both sides.

    A peer that it vouches for has seen a join token and may only ask for a challenge and enrol.
    """
    serial = _derive(seed, b"offsite/1 bootstrap authority serial", SERIAL_BYTES)
    key_seed = _derive(seed, b"offsite/1 bootstrap authority key", SEED_BYTES)
    return _self_signed(
        key_seed, "Offsite bootstrap CA", serial, _BOOTSTRAP_START_UNIX_S, _BOOTSTRAP_TTL_S
    )


def bootstrap_client(seed: bytes, now_unix_s: float) -> Credential:
    """The credential with which the holder of a join token opens its first connection; one day."""
    key = tls_key_from_seed(_derive(seed, b"offsite/1 bootstrap client key", SEED_BYTES))
    serial = _derive(seed, b"offsite/1 bootstrap client serial", SERIAL_BYTES)
    profile = _Profile(
        "Offsite bootstrap",
        (x509.UniformResourceIdentifier(names.BOOTSTRAP_URI),),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    cert_pem = _issue(
        bootstrap_authority(seed), key.public_key(), profile, serial, now_unix_s, 24 * 3600
    )
    return Credential(cert_pem, tls_key_pem(key))


def make_csr(key: TlsKey) -> bytes:
    """A PKCS#10 request in DER. It proves possession of the key; its names are ignored."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Offsite client")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(serialization.Encoding.DER)


def issue_server(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    serial: bytes,
    now_unix_s: float,
    ttl_s: float = limits.CERTIFICATE_TTL_S,
) -> bytes:
    """The coordinator's certificate (PEM) for `hosts`, each a DNS name or an IP address.

    Raises:
        ConfigError: no host, or one that is neither.
    """
    if not hosts:
        raise ConfigError("expected at least one host name or address of the coordinator")
    alternative_names = (
        x509.UniformResourceIdentifier(names.COORDINATOR_URI),
        *(_host_name(host) for host in hosts),
    )
    profile = _Profile("Offsite coordinator", alternative_names, ExtendedKeyUsageOID.SERVER_AUTH)
    return _issue(authority, public_key, profile, serial, now_unix_s, ttl_s)


def issue_client(
    authority: Authority,
    csr_der: bytes,
    client_id: str,
    serial: bytes,
    now_unix_s: float,
    ttl_s: float = limits.CERTIFICATE_TTL_S,
) -> bytes:
    """A client's certificate (PEM) for the key of a signing request.

    Raises:
        IdentityError: no request, one above 4 KiB, or for a key that is not P-256.
        SignatureError: the request is not signed by its own key.

    Guarantees: the name is the inviter's `client_id`, whatever the request says
    (`test_names_in_a_request_are_ignored`); the certificate is refused as a server's
    (`test_a_client_certificate_is_no_server`).
    """
    profile = _Profile(
        client_id,
        (x509.UniformResourceIdentifier(names.client_uri(client_id)),),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    return _issue(authority, _requested_key(csr_der), profile, serial, now_unix_s, ttl_s)


def spiffe_id_of(cert_pem: bytes) -> str | None:
    """The one URI that the certificate names its holder by; None if there is none or several.

    Raises:
        IdentityError: the bytes are no certificate.
    """
    certificate = _load(cert_pem)
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except _UNUSABLE_NAMES:
        return None
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else None


def client_id_of(cert_pem: bytes) -> str | None:
    """The client that the certificate names, or None; who issued it is another question."""
    uri = spiffe_id_of(cert_pem)
    return None if uri is None else names.client_id_from_uri(uri)


def is_issued_by(cert_pem: bytes, authority_cert_pem: bytes) -> bool:
    """Whether the authority's key signed the certificate."""
    try:
        _load(cert_pem).verify_directly_issued_by(_load(authority_cert_pem))
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def fingerprint(cert_pem: bytes) -> bytes:
    """SHA-256 of the certificate in DER. 32 bytes."""
    return hashlib.sha256(_load(cert_pem).public_bytes(serialization.Encoding.DER)).digest()


def validity_unix_s(cert_pem: bytes) -> tuple[float, float]:
    """From when and until when the certificate is valid."""
    certificate = _load(cert_pem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start.timestamp(), end.timestamp()


def cert_pem_of(cert_der: bytes) -> bytes:
    """A certificate in DER, such as the CA's in a join token, as PEM.

    Raises:
        IdentityError: the bytes are no certificate.
    """
    try:
        certificate = x509.load_der_x509_certificate(cert_der)
    except _UNREADABLE:
        raise IdentityError("expected a certificate in DER, found bytes that are none") from None
    return certificate.public_bytes(serialization.Encoding.PEM)


def _load(cert_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert_pem)
    except _UNREADABLE:
        raise IdentityError("expected a certificate in PEM, found bytes that are none") from None


def _derive(seed: bytes, purpose: bytes, length: int) -> bytes:
    if len(seed) != SEED_BYTES:
        raise ConfigError(
            f"expected a TLS seed of {SEED_BYTES} bytes, found {len(seed)}: restore the key file"
        )
    return HKDF(hashes.SHA256(), length, salt=None, info=purpose).derive(seed)


def _requested_key(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_der) > CSR_BYTES:
        raise IdentityError(
            f"expected a signing request of at most {CSR_BYTES} bytes, found {len(csr_der)}"
        )
    try:
        request = x509.load_der_x509_csr(csr_der)
        key, is_proven = request.public_key(), request.is_signature_valid
    except _UNREADABLE:
        raise IdentityError(
            "expected a PKCS#10 request in DER, found bytes that are none"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise IdentityError("expected a request for a P-256 key, found another kind of key")
    if not is_proven:
        raise SignatureError(
            "expected a request signed by its own key, found one that is not: possession of the "
            "TLS key was not proven"
        )
    return key


def _host_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):  # then it is a DNS name
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        if not host or len(host) > 253 or any(c.isspace() or c in ":/@" for c in host):
            raise ValueError
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"expected a host name or IP address, found {host!r}") from None


def _self_signed(
    seed: bytes, common_name: str, serial: bytes, now_unix_s: float, ttl_s: float
) -> Authority:
    key = tls_key_from_seed(seed)
    subject = _name(common_name)
    builder = (
        _builder(subject, key.public_key(), serial, now_unix_s, ttl_s)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
    )
    return Authority(_signed(builder, key), tls_key_pem(key))


def _issue(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    profile: _Profile,
    serial: bytes,
    now_unix_s: float,
    ttl_s: float,
) -> bytes:
    issuer = _load(authority.cert_pem)
    issuer_key = _load_key(authority.key_pem)
    authority_key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        _builder(_name(profile.common_name), public_key, serial, now_unix_s, ttl_s)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([profile.usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(profile.alternative_names), critical=False)
        .add_extension(authority_key_id, critical=False)
    )
    return _signed(builder, issuer_key)


def _builder(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    serial: bytes,
    now_unix_s: float,
    ttl_s: float,
) -> x509.CertificateBuilder:
    """What every certificate has in common; valid a little earlier than now, for slow clocks."""
    if len(serial) != SERIAL_BYTES:
        raise ConfigError(f"expected a serial of {SERIAL_BYTES} bytes, found {len(serial)}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(max(int.from_bytes(serial, "big"), 1))
        .not_valid_before(_utc(now_unix_s - limits.CLOCK_SKEW_S))
        .not_valid_after(_utc(now_unix_s + ttl_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: TlsKey) -> bytes:
    certificate = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return certificate.public_bytes(serialization.Encoding.PEM)


def _load_key(key_pem: bytes) -> TlsKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except _UNREADABLE:
        raise ConfigError("expected a private key in PEM, found another file") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("expected a P-256 key, found another kind: restore the CA's key file")
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Offsite"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)
