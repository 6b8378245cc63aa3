"""What tuning takes is recomputed from the emulator at hand and from the plan."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.emulator.bundle.conftest import CREATED_UNIX_S, tiny_contents
from tests.tiny import save_tokenizer

from offsite.edge_client.commands import join
from offsite.edge_client.commands.join import _Session
from offsite.edge_client.tuning_room import room_warnings
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.writer import write_bundle
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.emulator.tuning_memory import LEAST, TuningLoad
from offsite.secure.errors import PeerError
from offsite.secure.identity import IdentityKey

SIGNER = IdentityKey.from_seed(b"c" * 32)
AS_STATED = TuningSettings()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("release")
    contents = tiny_contents(save_tokenizer(folder / "tokenizer", 300), AdapterKind.LORA)
    times = (CREATED_UNIX_S, CREATED_UNIX_S + 3600)
    facts = ReleaseFacts("p", 1, *times, "tiny", "ab" * 32, "none", 0.6, {})
    write_bundle(folder / "bundle", contents, facts, SIGNER)
    return open_bundle(folder / "bundle", SIGNER.public, CREATED_UNIX_S)


def stating(bundle: Bundle, tuning_bytes: int) -> Bundle:
    manifest = replace(bundle.manifest, tuning_bytes=tuning_bytes)
    return replace(bundle, signed=replace(bundle.signed, manifest=manifest))


def test_the_plan_decides_and_not_what_the_release_states(bundle: Bundle) -> None:
    needed = bundle.manifest.tuning_bytes
    assert list(room_warnings(bundle, AS_STATED, needed)) == []
    assert list(room_warnings(bundle, AS_STATED, None)) == []
    (line,) = room_warnings(bundle, AS_STATED, needed - 1)
    assert "MiB are free: if it fails, join with a smaller --emulator" in line
    wide = replace(AS_STATED, micro_batch_tokens=65_536, dtype=ComputeDtype.FLOAT32)
    takes = bundle.tuning_bytes(TuningLoad(65_536, 4))
    (line,) = room_warnings(bundle, wide, takes)
    assert f"about {takes >> 20} MiB of memory, more than the {needed >> 20} MiB that" in line
    assert len(list(room_warnings(bundle, wide, takes - 1))) == 2


def test_an_emulator_that_states_less_than_it_can_take_is_not_tuned(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A choice by memory would have been misled."""
    least = bundle.tuning_bytes(LEAST)
    told: list[str] = []
    session = SimpleNamespace(
        state=SimpleNamespace(bundle=tmp_path),
        chooser=None,
        terminal=SimpleNamespace(note=told.append),
    )
    bars = SimpleNamespace(bar=lambda _: None)

    def fetched(tuning_bytes: int) -> Bundle:
        monkeypatch.setattr(join, "fetch_release", lambda *_, **__: stating(bundle, tuning_bytes))
        return _Session._fetch(cast(_Session, session), None, SIGNER.public, bars)  # type: ignore[arg-type]

    assert fetched(least).manifest.tuning_bytes == least
    with pytest.raises(PeerError, match=f"expected at least {least} bytes stated for tuning"):
        fetched(least - 1)
    assert len(told) == 1
