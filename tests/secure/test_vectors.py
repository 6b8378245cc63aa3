"""The vectors of `tests/vectors`: good ones come out, each bad one fails at the layer it names."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from offsite.secure import directory, envelope, errors
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.token import JoinToken

FOLDER = Path(__file__).parent.parent / "vectors"
Vector = dict[str, str]
Step = tuple[str, Callable[[], object]]


def files_of(kind: str) -> list[Path]:
    return sorted((FOLDER / kind).glob("*.json"))


def envelope_steps(vector: Vector) -> list[Step]:
    def opened() -> envelope.Envelope:
        return envelope.from_bytes(bytes.fromhex(vector["envelope"]))

    def verified() -> object:
        public_key = IdentityPublicKey(bytes.fromhex(vector["public_key"]))
        return envelope.verify(opened(), vector["expected_type"], public_key).hex()

    return [("from_bytes", opened), ("verify", verified)]


def token_steps(vector: Vector) -> list[Step]:
    return [("parse", lambda: JoinToken.parse(vector["token"])._body().hex())]


def directory_steps(vector: Vector) -> list[Step]:
    authority = IdentityPublicKey(bytes.fromhex(vector["authority_key"]))

    def opened(name: str = "envelope") -> directory.Directory:
        signed = envelope.from_bytes(bytes.fromhex(vector[name]))
        return directory.open_directory(signed, authority, float(vector["now_unix_s"]))

    def followed() -> int:
        if vector["known"] is not None:
            directory.check_successor(opened("known"), opened())
        return opened().version

    return [("open_directory", opened), ("check_successor", followed)]


def run(steps: list[Step], vector: Vector, expected: object) -> None:
    fails_at = vector["fails_at"]
    result: object = None
    for layer, step in steps:
        if isinstance(fails_at, dict) and fails_at["layer"] == layer:
            with pytest.raises(errors.OffsiteError, match=fails_at["says"]) as caught:
                step()
            assert type(caught.value).__name__ == fails_at["error"]
            return
        result = step()
    assert fails_at is None
    assert result == expected


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", files_of("envelope"), ids=ids)
def test_envelope_vectors(path: Path) -> None:
    vector = json.loads(path.read_text())
    run(envelope_steps(vector), vector, vector["payload"])


@pytest.mark.parametrize("path", files_of("token"), ids=ids)
def test_token_vectors(path: Path) -> None:
    vector = json.loads(path.read_text())
    run(token_steps(vector), vector, vector["body"])


@pytest.mark.parametrize("path", files_of("directory"), ids=ids)
def test_directory_vectors(path: Path) -> None:
    vector = json.loads(path.read_text())
    run(directory_steps(vector), vector, vector["version"])


@pytest.mark.parametrize("kind", ["envelope", "token", "directory"])
def test_bad_files_fail_and_good_ones_do_not(kind: str) -> None:
    files = files_of(kind)
    assert len(files) >= 10
    for path in files:
        fails = json.loads(path.read_text())["fails_at"] is not None
        assert fails == path.stem.startswith("bad_")


def test_the_files_are_as_generated(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(FOLDER / "generate.py"))["main"]
    assert main(["--check"]) == 0, capsys.readouterr().out
