"""Which emulator an edge takes, and what it knows of the memory of its machine."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.edge_client.releases import SIGNER, write_release

from offsite.edge_client.emulator_choice import AUTO, Chooser, Kept, choose, kept_in
from offsite.edge_client.machine_memory import free_bytes
from offsite.emulator.bundle.bundle import SignedManifest
from offsite.emulator.bundle.manifest import (
    MANIFEST_NAME,
    MANIFEST_TYPE,
    Manifest,
    VariantEntry,
)
from offsite.emulator.bundle.reader import open_manifest
from offsite.secure.envelope import from_bytes, sign, to_bytes
from offsite.secure.errors import ConfigError

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def release(tmp_path: Path) -> SignedManifest:
    """Of three emulators that take 8, 4 and 2 GiB."""
    write_release(tmp_path / "release")
    data = (tmp_path / "release" / MANIFEST_NAME).read_bytes()
    now = Manifest.from_bytes(from_bytes(data).payload).facts.created_unix_s
    signed = open_manifest(data, SIGNER.public, now)
    variants = tuple(
        VariantEntry(name, bytes(32), 1, 1, tuning)
        for name, tuning in (("small", 4 * GIB), ("tiny", 2 * GIB))
    )
    manifest = replace(signed.manifest, tuning_bytes=8 * GIB, variants=variants)
    return replace(signed, manifest=manifest)


@pytest.mark.parametrize(
    ("free", "name"),
    [
        (16 * GIB, "main"),
        (8 * GIB, "main"),
        (8 * GIB - 1, "small"),
        (4 * GIB, "small"),
        (2 * GIB, "tiny"),
    ],
)
def test_auto_takes_the_first_that_fits(free: int, name: str, release: SignedManifest) -> None:
    choice = choose(AUTO, release.manifest, free)
    assert choice.name == name
    assert "the first that fits: tuning it takes about" in choice.why
    assert f"{free // MIB} MiB are free" in choice.why


def test_auto_takes_the_smallest_where_none_fits_and_says_so(release: SignedManifest) -> None:
    choice = choose(AUTO, release.manifest, GIB)
    assert choice.name == "tiny"
    assert choice.why.startswith("none fits, this is the smallest: tuning it takes about 2048 MiB")


def test_auto_takes_the_main_one_where_memory_is_not_known(release: SignedManifest) -> None:
    assert choose(AUTO, release.manifest, None).name == "main"


def test_a_variant_that_takes_more_memory_is_not_preferred_for_it(release: SignedManifest) -> None:
    """One that shares blocks is strongly compressed, and takes more than the main one."""
    manifest = replace(release.manifest, tuning_bytes=3 * GIB)
    assert choose(AUTO, manifest, 16 * GIB).name == "main"


@pytest.mark.parametrize("name", ["main", "small", "tiny"])
def test_what_is_told_is_taken_whether_it_fits_or_not(name: str, release: SignedManifest) -> None:
    assert choose(name, release.manifest, 1).name == name


@pytest.mark.parametrize("name", ["large", "", "../main", "Small", "automatic"])
def test_an_unknown_name_is_refused_with_the_names(name: str, release: SignedManifest) -> None:
    with pytest.raises(ConfigError, match=r"\(main, small, tiny\), found"):
        choose(name, release.manifest, 16 * GIB)


def test_a_release_is_chosen_from_once_and_said_so(release: SignedManifest) -> None:
    """A model that is still in memory does not push the choice down."""
    free, lines = [5 * GIB], list[str]()
    chooser = Chooser(AUTO, lines.append, lambda: free[0])
    assert chooser(release) == "small"
    free[0] = 3 * GIB
    assert chooser(release) == "small"
    assert chooser(replace(release, digest=b"another release")) == "tiny"
    assert len(lines) == 2
    assert lines[0].startswith("emulator small: the first that fits: tuning it takes about 4096")


def test_nothing_is_said_where_there_is_no_choice(release: SignedManifest) -> None:
    lines: list[str] = []
    alone = replace(release, manifest=replace(release.manifest, variants=()))
    assert Chooser(AUTO, lines.append, lambda: 1)(alone) == "main"
    assert lines == []


# What is here already


@pytest.mark.parametrize(
    ("kept", "free", "name"),
    [
        (Kept("small", False), 16 * GIB, "small"),  # more memory than when it was chosen
        (Kept("small", False), 4 * GIB, "small"),
        (Kept("small", False), 3 * GIB, "tiny"),
        (Kept("small", True), 3 * GIB, "small"),
        (Kept("small", False), None, "small"),
        (Kept("gone", True), 3 * GIB, "tiny"),
        (None, 3 * GIB, "tiny"),
    ],
)
def test_auto_keeps_what_is_here_while_it_fits_or_goes_on(
    kept: Kept | None, free: int | None, name: str, release: SignedManifest
) -> None:
    assert choose(AUTO, release.manifest, free, kept).name == name
    assert choose("main", release.manifest, free, kept).name == "main"


def test_a_choice_survives_a_kill(release: SignedManifest, tmp_path: Path) -> None:
    """What the next process finds on the disk: files on the way, a release, a checkpoint."""
    bundle, rounds = tmp_path / "bundle", tmp_path / "rounds"

    def chosen(free: int) -> str:
        kept = partial(kept_in, bundle, rounds)
        return Chooser(AUTO, lambda _: None, lambda: free, kept)(release)

    payload = release.manifest.to_bytes()
    release = replace(release, digest=hashlib.sha256(payload).digest())
    incoming = tmp_path / "bundle.incoming"
    (incoming / "variants" / "small").mkdir(parents=True)
    signed = sign(MANIFEST_TYPE, payload, SIGNER)
    (incoming / MANIFEST_NAME).write_bytes(to_bytes(signed))
    assert (chosen(16 * GIB), chosen(3 * GIB)) == ("small", "tiny")
    incoming.rename(bundle)
    assert (chosen(16 * GIB), chosen(3 * GIB)) == ("small", "tiny")
    (rounds / "0a").mkdir(parents=True)
    (rounds / "0a" / "tuning.safetensors").touch()
    assert chosen(3 * GIB) == "small"
    release = replace(release, digest=b"another release")
    assert chosen(3 * GIB) == "tiny"
    (bundle / MANIFEST_NAME).write_bytes(b"damaged")
    assert chosen(3 * GIB) == "tiny"


# The machine


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       32000000 kB\nMemAvailable:    8000000 kB\nX: 1 kB\n"}
V2 = MEMINFO | {"proc/self/cgroup": "0::/user/job\n"}
V1 = MEMINFO | {"proc/self/cgroup": "5:cpu:/\n4:memory,x:/docker/abc\n0::/\n"}


def test_memory_is_what_the_system_says_is_available(tmp_path: Path) -> None:
    assert free_bytes(machine(tmp_path, MEMINFO)) == 8_000_000 * 1024


@pytest.mark.parametrize("group", ["user/job", "user", ""])
def test_a_control_group_above_counts_if_it_leaves_less(group: str, tmp_path: Path) -> None:
    folder = f"sys/fs/cgroup/{group}"
    files = V2 | {
        f"{folder}/memory.max": "3000000000\n",
        f"{folder}/memory.current": "2500000000\n",
        f"{folder}/memory.stat": "anon 1\ninactive_file 400000000\nactive_file 7\n",
    }
    assert free_bytes(machine(tmp_path, files)) == 900_000_000


def test_a_control_group_without_a_limit_does_not_count(tmp_path: Path) -> None:
    files = V2 | {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert free_bytes(machine(tmp_path, files)) == 8_000_000 * 1024


@pytest.mark.parametrize("folder", ["sys/fs/cgroup/memory/docker/abc", "sys/fs/cgroup/memory"])
def test_the_first_version_of_control_groups_counts_too(folder: str, tmp_path: Path) -> None:
    """In a container the group stands at the top, whatever its path says."""
    files = V1 | {
        f"{folder}/memory.limit_in_bytes": "2000000000\n",
        f"{folder}/memory.usage_in_bytes": "1500000000\n",
        f"{folder}/memory.stat": "inactive_file 1\ntotal_inactive_file 100000000\n",
    }
    assert free_bytes(machine(tmp_path, files)) == 600_000_000
    (tmp_path / folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert free_bytes(tmp_path) == 8_000_000 * 1024


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = V2 | {"sys/fs/cgroup/memory.max": "5\n", "sys/fs/cgroup/memory.current": "9\n"}
    assert free_bytes(machine(tmp_path, files)) == 0


def test_a_system_without_these_files_answers_something_or_nothing(tmp_path: Path) -> None:
    found = free_bytes(tmp_path)
    assert found is None or found > 0
