"""The key that this edge's SuperNode signs with: P-384, in the format that Flower reads."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from offsite.edge_client.state import EdgeState
from offsite.emulator.durable import unreadable, write_atomic
from offsite.secure.errors import ConfigError

NAME = "node.key"


def node_key_pem(state: EdgeState) -> bytes:
    """The public key; both are made and stored at first use, the private one as `keys/node.key`.

    Raises:
        ConfigError: the file was damaged.
    """
    path = state.keys / NAME
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        write_atomic(path, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged; remove it, and another is made") from error
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
