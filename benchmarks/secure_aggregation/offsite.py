"""One secure sum of ours, phase by phase, with a clock."""

import hashlib
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from benchmarks.secure_aggregation.shape import Shape, updates
from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.fixed_point import FixedPoint, encode
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.keystream import Generator, Keystream, Words
from offsite.secure.aggregation.masks import PIECE_WORDS, apply_masks
from offsite.secure.aggregation.member import Member, Self
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.aggregation.runner import MemoryLatch
from offsite.secure.identity import IdentityKey, IdentityPublicKey

STRETCH_WORDS = 16 * PIECE_WORDS


def measure(shape: Shape, generator: Generator, threads: int) -> dict[str, object]:
    """Plays the sum; returns what goes into the line."""
    fleet = _Fleet(shape, generator)
    share_s, control_up, down = fleet.share()
    mask_s, bare_mask_s, total = fleet.mask(threads)
    unmask_s, bare_unmask_s, masks, is_exact = fleet.unmask(total, threads)
    up = control_up + fleet.reveal_bytes + 4 * (shape.values + 1)
    return {
        "generator": generator.name,
        "threads": threads,
        "exact": is_exact,
        "share_s": round(share_s, 4),
        "mask_s": round(mask_s, 4),
        "bare_mask_s": round(bare_mask_s, 4),
        "mask_ratio": round(mask_s / bare_mask_s, 3),
        "unmask_s": round(unmask_s, 4),
        "bare_unmask_s": round(bare_unmask_s, 4),
        "unmask_ratio": round(unmask_s / bare_unmask_s, 3),
        "masks_removed": masks,
        "bytes_up": up,
        "bytes_up_per_value": round(up / shape.values, 4),
        "control_bytes_up": control_up + fleet.reveal_bytes,
        "bytes_down": down,
    }


class _Fleet:
    def __init__(self, shape: Shape, generator: Generator) -> None:
        self.shape = shape
        self.names = [f"edge-{i:03d}" for i in range(shape.clients)]
        self.keys = {name: IdentityKey.from_seed(_seed("id", name)) for name in self.names}
        coordinator = IdentityKey.from_seed(_seed("id", "coordinator"))
        self.terms = _terms(shape, generator)
        self.gathering = Gathering(self.terms, coordinator, self._key_of)
        policy = PolicyFloor(least_cohort=2)
        self.members = {
            name: Member(
                Self(name, key),
                self.terms,
                coordinator.public,
                self._key_of,
                policy,
                _seed("entropy", name),
            )
            for name, key in self.keys.items()
        }
        self.survivors = self.names[: shape.clients - shape.dropouts]
        self.reveal_bytes = 0

    def _key_of(self, name: str) -> IdentityPublicKey:
        return self.keys[name].public

    def share(self) -> tuple[float, int, int]:
        """Phases 1 to 2b: seconds per client (median), bytes up and down of one client."""
        seconds, gathering, up, down = dict.fromkeys(self.names, 0.0), self.gathering, 0, 0
        for name, member in self.members.items():
            with _clock(seconds, name):
                advertisement = member.advertise(0)
            gathering.add_advertisement(advertisement)
        roster = gathering.freeze_roster()
        for name, member in self.members.items():
            with _clock(seconds, name):
                sharing, parts = member.share(roster, 0)
            gathering.add_sharing(sharing, parts, name)
            up = len(advertisement) + len(sharing) + sum(map(len, parts))
        for name, member in self.members.items():
            given = gathering.deliveries(name)
            with _clock(seconds, name):
                acknowledgement = member.acknowledge(given, 0)
            gathering.add_acknowledgement(acknowledgement, name)
            down = sum(map(len, roster)) + sum(map(_size, given.values()))
        return statistics.median(seconds.values()), up + len(acknowledgement), down

    def mask(self, threads: int) -> tuple[float, float, Words]:
        """Phase 3: seconds of one client (median), of its bare keystream, and the masked sum."""
        chosen, seconds = self.gathering.freeze_members(), []
        total = np.zeros(self.shape.values + 1, np.uint32)
        bare = [_bare(self._keys(), self.shape.values + 1, self.terms.generator, threads)]
        for name in self.survivors:
            words = encode(updates(self.shape, name), 1.0, self.terms.fixed_point)
            started = time.perf_counter()
            header = self.members[name].mask(chosen, words, MemoryLatch(), 0, threads)
            seconds.append(time.perf_counter() - started)
            self.gathering.add_upload(header, name)
            total += words
        bare.append(_bare(self._keys(), self.shape.values + 1, self.terms.generator, threads))
        return statistics.median(seconds), min(bare), total

    def _keys(self) -> list[bytes]:
        return [_seed("bare", str(i)) for i in range(self.shape.clients)]

    def unmask(self, total: Words, threads: int) -> tuple[float, float, int, bool]:
        """Phases 4 and 5, then the clock: shares to secrets, secrets to masks, masks away."""
        uploads = self.gathering.freeze_survivors()
        for name in self.survivors:
            self.gathering.add_confirmation(self.members[name].confirm(uploads, 0), name)
        words = self.gathering.confirmations()
        for name in self.survivors:
            reveal = self.members[name].reveal(words, MemoryLatch(), 0)
            self.gathering.add_reveal(reveal, name)
            self.reveal_bytes = len(reveal)
        started = time.perf_counter()
        masks = [mask.opposite for mask in self.gathering.masks()]
        apply_masks(total, masks, self.terms.generator, threads)
        seconds = time.perf_counter() - started
        keys = [mask.key for mask in masks]
        bare = _bare(keys, self.shape.values + 1, self.terms.generator, threads)
        return seconds, bare, len(masks), np.array_equal(total, self._exact())

    def _exact(self) -> Words:
        exact = np.zeros(self.shape.values + 1, np.uint32)
        for name in self.survivors:
            exact += encode(updates(self.shape, name), 1.0, self.terms.fixed_point)
        return exact


def _bare(keys: Sequence[bytes], words: int, generator: Generator, threads: int) -> float:
    """Seconds to write `words` words of the keystream of every key, and nothing else."""

    def write(start: int) -> None:
        size = min(PIECE_WORDS, words - start)
        zeros, out = np.zeros(size, np.uint32), np.empty(size, np.uint32)
        end = min(start + STRETCH_WORDS, words)
        streams = [Keystream(generator, key, start) for key in keys]
        for at in range(start, end, PIECE_WORDS):
            count = min(PIECE_WORDS, end - at)
            for stream in streams:
                stream.next_into(out[:count], zeros[:count])

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(0, words, STRETCH_WORDS)))
    return time.perf_counter() - started


def _terms(shape: Shape, generator: Generator) -> RoundConfig:
    return RoundConfig(
        project="benchmark",
        campaign_id="1",
        round_id=bytes(16),
        attempt=0,
        cohort=0,
        directory_version=1,
        directory_sha256=bytes(32),
        binding=bytes(32),
        schema_sha256=bytes(32),
        values=shape.values,
        fixed_point=FixedPoint.for_cohort(shape.clients, 1.0),
        full_weight=1,
        generator=generator,
        least_members=2,
        most_members=shape.clients,
        noise_sigma=0.0,
        deadlines_unix_s=(1.0,) * 5,
    )


def _size(given: Delivery) -> int:
    return len(given.sharing) + len(given.part) + sum(map(len, given.proof))


def _seed(kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{kind} {name}".encode()).digest()


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time of a block to an entry."""
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started
