"""Certificates, judged by OpenSSL's handshake in memory and by a path verifier in Rust."""

import datetime
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from offsite.secure import certificates, names
from offsite.secure.certificates import Authority, Credential
from offsite.secure.errors import ConfigError, IdentityError, SignatureError
from offsite.secure.limits import CLOCK_SKEW_S

# The handshake looks at the machine's own clock, so these certificates are valid for decades.
START_UNIX_S = 1_735_689_600.0
LONG_S = 50 * 365 * 24 * 3600
HOSTS = (names.SERVER_NAME, "127.0.0.1", "::1")
BOOTSTRAP_SEED = b"\x23" * 32


def authority(seed: int) -> Authority:
    return certificates.create_authority(bytes([seed]) * 32, bytes([seed]) * 16, START_UNIX_S)


CA, OTHER_CA = authority(1), authority(2)
BOOTSTRAP_CA = certificates.bootstrap_authority(BOOTSTRAP_SEED)


def server_of(ca: Authority) -> Credential:
    key = certificates.tls_key_from_seed(b"\x51" * 32)
    cert = certificates.issue_server(
        ca, key.public_key(), HOSTS, b"\x61" * 16, START_UNIX_S, LONG_S
    )
    return Credential(cert, certificates.tls_key_pem(key))


def client_of(ca: Authority, client_id: str = "edge-1") -> Credential:
    key = certificates.tls_key_from_seed(b"\x52" * 32)
    cert = certificates.issue_client(
        ca, certificates.make_csr(key), client_id, b"\x62" * 16, START_UNIX_S, LONG_S
    )
    return Credential(cert, certificates.tls_key_pem(key))


def bootstrap_peer() -> Credential:
    # It lives one day, and the handshake looks at the machine's clock: the one real time here.
    return certificates.bootstrap_client(BOOTSTRAP_SEED, time.time())


Handshake = Callable[..., str]


@pytest.fixture
def handshake(tmp_path: Path) -> Handshake:
    """Both sides of a TLS 1.3 handshake through memory; returns the URI the server saw."""

    def load(context: ssl.SSLContext, credential: Credential, name: str) -> None:
        cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        cert.write_bytes(credential.cert_pem)
        key.write_bytes(credential.key_pem)
        context.load_cert_chain(cert, key)

    def run(
        server: Credential,
        client: Credential | None,
        *,
        server_trusts: tuple[Authority, ...],
        client_trusts: Authority,
        host: str = HOSTS[0],
    ) -> str:
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (server_context, client_context):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_flags |= ssl.VERIFY_X509_STRICT
        server_context.verify_mode = ssl.CERT_REQUIRED
        roots = b"".join(root.cert_pem for root in server_trusts)
        server_context.load_verify_locations(cadata=roots.decode())
        client_context.load_verify_locations(cadata=client_trusts.cert_pem.decode())
        load(server_context, server, "server")
        if client is not None:
            load(client_context, client, "client")
        return shake(server_context, client_context, host)

    return run


def shake(server_context: ssl.SSLContext, client_context: ssl.SSLContext, host: str) -> str:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    pending = [client, server]
    for turn in range(20):
        side = (client, server)[turn % 2]
        if side in pending:
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not pending
    peer = server.getpeercert()
    assert peer is not None
    (uri,) = [str(name[1]) for name in peer["subjectAltName"] if name[0] == "URI"]
    return uri


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_of_the_right_ca_gets_in(handshake: Handshake, host: str) -> None:
    uri = handshake(
        server_of(CA),
        client_of(CA),
        server_trusts=(CA, BOOTSTRAP_CA),
        client_trusts=CA,
        host=host,
    )
    assert uri == "spiffe://offsite/client/edge-1"


def test_a_client_of_another_ca_is_refused(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(
            server_of(CA),
            client_of(OTHER_CA),
            server_trusts=(CA, BOOTSTRAP_CA),
            client_trusts=CA,
        )


def test_a_client_without_a_certificate_is_refused(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server_of(CA), None, server_trusts=(CA,), client_trusts=CA)


def test_a_server_of_another_ca_is_refused(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_of(OTHER_CA), client_of(CA), server_trusts=(CA,), client_trusts=CA)


def test_a_server_of_another_name_is_refused(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="Hostname mismatch"):
        handshake(
            server_of(CA),
            client_of(CA),
            server_trusts=(CA,),
            client_trusts=CA,
            host="evil.example",
        )


def test_a_bootstrap_peer_gets_in_where_its_ca_is_trusted(handshake: Handshake) -> None:
    uri = handshake(
        server_of(CA), bootstrap_peer(), server_trusts=(CA, BOOTSTRAP_CA), client_trusts=CA
    )
    assert uri == names.BOOTSTRAP_URI


def test_a_bootstrap_peer_is_refused_elsewhere(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_of(CA), bootstrap_peer(), server_trusts=(CA,), client_trusts=CA)


def test_a_client_certificate_is_no_server(handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(client_of(CA), client_of(CA), server_trusts=(CA,), client_trusts=CA)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(server_of(CA), server_of(CA), server_trusts=(CA,), client_trusts=CA)


def parse(cert_pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(cert_pem)


def policy(ca: Authority, at_unix_s: float) -> PolicyBuilder:
    at = datetime.datetime.fromtimestamp(at_unix_s, datetime.UTC)
    return PolicyBuilder().store(Store([parse(ca.cert_pem)])).time(at)


def test_chains_hold_by_the_web_pki_rules() -> None:
    """A second, stricter verifier than OpenSSL's; it demands SKI, AKI, EKU and SAN as in RFC 5280."""
    now = START_UNIX_S + 1
    verifier = policy(CA, now).build_client_verifier()
    assert len(verifier.verify(parse(client_of(CA).cert_pem), []).chain) == 2
    server = policy(CA, now).build_server_verifier(x509.DNSName(HOSTS[0]))
    assert len(server.verify(parse(server_of(CA).cert_pem), [])) == 2
    with pytest.raises(VerificationError):
        verifier.verify(parse(client_of(OTHER_CA).cert_pem), [])
    with pytest.raises(VerificationError):
        verifier.verify(parse(server_of(CA).cert_pem), [])


def test_a_client_cannot_issue() -> None:
    """A certificate that a client signs with its own key leads to no trusted root."""
    client = client_of(CA)
    forged = client_of(Authority(client.cert_pem, client.key_pem), "edge-2")
    verifier = policy(CA, START_UNIX_S + 1).build_client_verifier()
    with pytest.raises(VerificationError):
        verifier.verify(parse(forged.cert_pem), [parse(client.cert_pem)])


def test_certificates_expire() -> None:
    key = certificates.tls_key_from_seed(b"\x52" * 32)
    csr = certificates.make_csr(key)
    cert = certificates.issue_client(CA, csr, "edge-1", b"\x62" * 16, START_UNIX_S, 3600)
    start, end = START_UNIX_S - CLOCK_SKEW_S, START_UNIX_S + 3600
    assert certificates.validity_unix_s(cert) == (start, end)
    policy(CA, end).build_client_verifier().verify(parse(cert), [])
    for late_or_early in (end + 1, start - 1):
        with pytest.raises(VerificationError):
            policy(CA, late_or_early).build_client_verifier().verify(parse(cert), [])


def test_what_certificates_say() -> None:
    client, server, ca = (
        parse(client_of(CA).cert_pem),
        parse(server_of(CA).cert_pem),
        parse(CA.cert_pem),
    )
    for leaf, usage in (
        (client, ExtendedKeyUsageOID.CLIENT_AUTH),
        (server, ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        extensions = leaf.extensions
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        issuer_id = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        ca_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert issuer_id.key_identifier == ca_id.digest
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    alternative = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == [HOSTS[0]]
    assert [str(a) for a in alternative.get_values_for_type(x509.IPAddress)] == list(HOSTS[1:])


def test_everything_is_deterministic() -> None:
    assert authority(1) == CA
    assert client_of(CA) == client_of(CA)
    assert certificates.bootstrap_authority(BOOTSTRAP_SEED) == BOOTSTRAP_CA
    now = START_UNIX_S
    assert certificates.bootstrap_client(BOOTSTRAP_SEED, now) == certificates.bootstrap_client(
        BOOTSTRAP_SEED, now
    )
    assert certificates.bootstrap_authority(b"\x24" * 32) != BOOTSTRAP_CA


def test_keys_differ_by_seed_and_purpose() -> None:
    scalars = {
        certificates.tls_key_from_seed(bytes([i]) * 32).private_numbers().private_value
        for i in range(50)
    }
    assert len(scalars) == 50
    used = {CA.key_pem, BOOTSTRAP_CA.key_pem, bootstrap_peer().key_pem}
    used.add(certificates.tls_key_pem(certificates.tls_key_from_seed(BOOTSTRAP_SEED)))
    assert len(used) == 4


def test_who_a_certificate_names() -> None:
    assert certificates.client_id_of(client_of(CA).cert_pem) == "edge-1"
    for credential in (server_of(CA), bootstrap_peer(), CA):
        assert certificates.client_id_of(credential.cert_pem) is None
    assert certificates.spiffe_id_of(server_of(CA).cert_pem) == names.COORDINATOR_URI
    assert certificates.spiffe_id_of(bootstrap_peer().cert_pem) == names.BOOTSTRAP_URI
    assert certificates.spiffe_id_of(CA.cert_pem) is None
    with pytest.raises(IdentityError):
        certificates.client_id_of(b"no certificate")


def test_a_certificate_with_two_names_names_nobody() -> None:
    key = certificates.tls_key_from_seed(b"\x52" * 32)
    uris = [x509.UniformResourceIdentifier(names.client_uri(name)) for name in ("a", "b")]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2025, 1, 1))
        .not_valid_after(datetime.datetime(2035, 1, 1))
        .add_extension(x509.SubjectAlternativeName(uris), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    assert certificates.spiffe_id_of(pem) is None
    assert certificates.client_id_of(pem) is None


def test_a_name_of_a_kind_that_cannot_be_read_names_nobody() -> None:
    key = certificates.tls_key_from_seed(b"\x53" * 32)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    x400_address = bytes.fromhex("3004a3023000")  # the one element of a SAN: [3], empty
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2025, 1, 1))
        .not_valid_after(datetime.datetime(2035, 1, 1))
        .add_extension(
            x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, x400_address),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    assert certificates.spiffe_id_of(pem) is None
    assert certificates.client_id_of(pem) is None


def test_who_issued_a_certificate() -> None:
    cert = client_of(CA).cert_pem
    assert certificates.is_issued_by(cert, CA.cert_pem)
    assert not certificates.is_issued_by(cert, BOOTSTRAP_CA.cert_pem)
    # The same name, another key: the signature decides.
    assert not certificates.is_issued_by(cert, OTHER_CA.cert_pem)


def test_fingerprints_and_forms() -> None:
    cert = client_of(CA).cert_pem
    assert certificates.fingerprint(cert) == parse(cert).fingerprint(hashes.SHA256())
    assert certificates.cert_pem_of(CA.cert_der) == CA.cert_pem
    with pytest.raises(IdentityError):
        certificates.cert_pem_of(b"none")


def test_names_in_a_request_are_ignored() -> None:
    key = certificates.tls_key_from_seed(b"\x52" * 32)
    uri = x509.UniformResourceIdentifier(names.client_uri("admin"))
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")]))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    csr = request.public_bytes(serialization.Encoding.DER)
    cert = certificates.issue_client(CA, csr, "edge-1", b"\x62" * 16, START_UNIX_S)
    assert certificates.client_id_of(cert) == "edge-1"
    assert b"admin" not in parse(cert).public_bytes(serialization.Encoding.DER)
    assert not parse(cert).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def request_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_requests_that_are_refused() -> None:
    good = certificates.make_csr(certificates.tls_key_from_seed(b"\x52" * 32))
    p384 = request_of(ec.derive_private_key(5, ec.SECP384R1()))
    other = request_of(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
    not_proven = good[:-1] + bytes([good[-1] ^ 1])
    for csr, error in (
        (b"", IdentityError),
        (b"junk", IdentityError),
        (good + bytes(4096), IdentityError),
        (p384, IdentityError),
        (other, IdentityError),
        (not_proven, SignatureError),
    ):
        with pytest.raises(error):
            certificates.issue_client(CA, csr, "edge-1", b"\x62" * 16, START_UNIX_S)
    with pytest.raises(IdentityError):
        certificates.issue_client(CA, good, "Edge 1", b"\x62" * 16, START_UNIX_S)


def changed_bits(good: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_any_bit_change_in_a_request_is_refused() -> None:
    good = certificates.make_csr(certificates.tls_key_from_seed(b"\x52" * 32))
    for csr in changed_bits(good):
        with pytest.raises((IdentityError, SignatureError)):
            certificates.issue_client(CA, csr, "edge-1", b"\x62" * 16, START_UNIX_S)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_bit_of_what_a_certificate_says_can_change() -> None:
    """DER lets one bit beside the signature vary; what is signed cannot, nor the fingerprint."""
    good = client_of(CA).cert_pem
    for der in changed_bits(parse(good).public_bytes(serialization.Encoding.DER)):
        pem = ssl.DER_cert_to_PEM_cert(der).encode()
        try:
            certificates.spiffe_id_of(pem)
        except IdentityError:
            continue
        assert certificates.fingerprint(pem) != certificates.fingerprint(good)
        if certificates.is_issued_by(pem, CA.cert_pem):
            assert parse(pem).tbs_certificate_bytes == parse(good).tbs_certificate_bytes


@pytest.mark.parametrize("hosts", [(), ("",), ("a b",), ("host:1",), ("ä.example",), ("a" * 254,)])
def test_hosts_that_are_refused(hosts: tuple[str, ...]) -> None:
    key = certificates.tls_key_from_seed(b"\x51" * 32).public_key()
    with pytest.raises(ConfigError):
        certificates.issue_server(CA, key, hosts, b"\x61" * 16, START_UNIX_S)


def test_arguments_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigError):
        certificates.tls_key_from_seed(bytes(31))
    with pytest.raises(ConfigError):
        certificates.create_authority(bytes(32), bytes(15), START_UNIX_S)
    for key_pem in (b"none", other_key_pem()):
        with pytest.raises(ConfigError):
            client_of(Authority(CA.cert_pem, key_pem))


def other_key_pem() -> bytes:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_repr_shows_no_secret() -> None:
    for holder in (CA, client_of(CA)):
        assert "PRIVATE" not in repr(holder)
