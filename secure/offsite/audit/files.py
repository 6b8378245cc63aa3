"""Reading what somebody else kept: a size limit before a byte is read, and errors that say what to do."""

from pathlib import Path

from offsite.secure.errors import ConfigError, IntegrityError


def read_file(path: Path, most: int, advice: str) -> bytes:
    """A file of at most `most` bytes.

    Raises:
        ConfigError: it is not there (`advice` says where it comes from), or cannot be read.
        IntegrityError: it is larger than such a file can be.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} cannot be read: it is a folder")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} cannot be read: it is no file")
        size = path.stat().st_size
        if size > most:
            raise IntegrityError(f"{path}: expected at most {most} bytes, found {size}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"expected {path}, found no such file: {advice}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
