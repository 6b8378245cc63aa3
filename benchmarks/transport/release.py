"""What both processes find in the work folder: a release of random bytes, keys, certificates."""

import os
import secrets
import time
from pathlib import Path

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec
from offsite.emulator.bundle.chunks import ChunkedFile
from offsite.emulator.bundle.manifest import MANIFEST_NAME, MANIFEST_TYPE, Manifest, ReleaseFacts
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.secure import certificates, envelope, limits, names
from offsite.secure.identity import IdentityKey

FILE = "emulator.safetensors"


def prepare(work: Path, size: int) -> None:
    """Writes the release, its key and the certificates of both sides."""
    now = time.time()
    release = work / "release"
    release.mkdir()
    with ChunkedFile(release, FILE) as file:
        for start in range(0, size, limits.MIB):
            file.write(os.urandom(min(limits.MIB, size - start)))
        entry = file.finish()
    facts = ReleaseFacts(
        "benchmark", 1, int(now), int(now) + 86_400, "none", "00" * 32, "none", 1.0, {}
    )
    layer_map = LayerMap.of(Placement(1, 1), 3, [1])
    manifest = Manifest(facts, layer_map, AdapterSpec(AdapterKind.WHOLE_BLOCK), (entry,))
    key = IdentityKey.from_seed(secrets.token_bytes(32))
    signed = envelope.sign(MANIFEST_TYPE, manifest.to_bytes(), key)
    (release / MANIFEST_NAME).write_bytes(envelope.to_bytes(signed))
    (work / "identity.seed").write_bytes(key.seed)
    _write_certificates(work, now)


def _write_certificates(work: Path, now: float) -> None:
    authority = certificates.create_authority(secrets.token_bytes(32), secrets.token_bytes(16), now)
    server, client = (certificates.tls_key_from_seed(secrets.token_bytes(32)) for _ in range(2))
    hosts = [names.SERVER_NAME, "127.0.0.1"]
    server_pem = certificates.issue_server(
        authority, server.public_key(), hosts, secrets.token_bytes(16), now
    )
    client_pem = certificates.issue_client(
        authority, certificates.make_csr(client), "edge", secrets.token_bytes(16), now
    )
    for name, data in (
        ("ca.pem", authority.cert_pem),
        ("server.pem", server_pem),
        ("server.key", certificates.tls_key_pem(server)),
        ("client.pem", client_pem),
        ("client.key", certificates.tls_key_pem(client)),
    ):
        (work / name).write_bytes(data)
