"""The terms of one secure sum, signed by the coordinator, the same bytes for every member.

Everything that a member must agree on is in here or hangs on it by a digest: which release, plan
and adapter are tuned (`binding`), how long vectors are, how numbers are encoded, who may be named
(directory version and head), how many must take part. Pair seeds are derived from a hash of these
bytes, so members that were told different terms derive different masks, and their sum is noise:
that is what defeats a coordinator who sends different models to different members (Pasquini et
al., arXiv 2111.07380).
"""

import math
import struct
from dataclasses import dataclass
from typing import Final

from offsite.secure.aggregation.encoding import DIGEST_BYTES, Reader, digest, integer, pack
from offsite.secure.aggregation.fixed_point import FixedPoint
from offsite.secure.aggregation.keystream import MOST_WORDS, Generator
from offsite.secure.aggregation.shamir import MOST_SHARES
from offsite.secure.errors import ConfigError, PeerError

CONFIG_TYPE: Final = "application/vnd.offsite.secagg.config"
SUITE: Final = "OTSA/1"
ROUND_ID_BYTES: Final = 16
MOST_MEMBERS: Final = MOST_SHARES
LEAST_MEMBERS: Final = 2
TEXT_CHARS: Final = 128
_MOST_INTEGER: Final = (1 << 53) - 1
PHASES: Final = 5
"""Deadlines: advertise, share, acknowledge, upload, confirm and reveal."""


@dataclass(frozen=True, slots=True)
class RoundConfig:
    """See the module. Immutable, and checked when it is made.

    Raises:
        ConfigError: a value out of range, or a sum that could leave the guard band.
    """

    project: str
    campaign_id: str
    round_id: bytes  # 16 random bytes, new for every attempt
    attempt: int
    cohort: int
    directory_version: int
    directory_sha256: bytes  # of the exact signed directory
    binding: bytes  # SHA-256 of the signed plan: release, adapter, tuning settings, round
    schema_sha256: bytes  # names, shapes and order of what the vector holds
    values: int  # d, without the weight
    fixed_point: FixedPoint
    full_weight: int  # examples that weigh 1; more weigh no more
    generator: Generator
    least_members: int
    most_members: int
    noise_sigma: float  # distributed noise per member, in steps of 2^-f; 0 for none
    deadlines_unix_s: tuple[float, ...]

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise ConfigError(f"secure aggregation: {problem}")
        self.fixed_point.bound(self.most_members)

    def threshold(self, members: int) -> int:
        """t = ⌊2n/3⌋ + 1 of a roster of n: tolerates ⌊0.3 n⌋ dropouts and fewer than n/3 liars."""
        return 2 * members // 3 + 1

    @property
    def digest(self) -> bytes:
        """rc: what every later message of the round is bound to."""
        return digest("config", self.to_bytes())

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        point = self.fixed_point
        return pack(
            (
                SUITE.encode(),
                self.project.encode(),
                self.campaign_id.encode(),
                self.round_id,
                *map(integer, (self.attempt, self.cohort, self.directory_version)),
                self.directory_sha256,
                self.binding,
                self.schema_sha256,
                integer(self.values),
                integer(point.fraction_bits),
                _real(point.coordinate_bound),
                _real(point.norm_bound),
                integer(point.noise_tail),
                integer(self.full_weight),
                integer(self.generator.value),
                integer(self.least_members),
                integer(self.most_members),
                _real(self.noise_sigma),
                b"".join(map(_real, self.deadlines_unix_s)),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "RoundConfig":
        """Reads signed bytes; raises PeerError for anything that `to_bytes` would not write."""
        reader = Reader(data, "round configuration")
        suite = reader.text("suite", TEXT_CHARS)
        if suite != SUITE:
            raise PeerError(f"expected the suite {SUITE}, found {suite}: update this program")
        try:
            config = _read(reader)
        except ConfigError as error:
            raise PeerError(f"round configuration: {error}") from None
        reader.close()
        return config


def _read(reader: Reader) -> RoundConfig:
    return RoundConfig(
        project=reader.text("project", TEXT_CHARS),
        campaign_id=reader.text("campaign_id", TEXT_CHARS),
        round_id=reader.exactly("round_id", ROUND_ID_BYTES),
        attempt=reader.integer("attempt", 0, _MOST_INTEGER),
        cohort=reader.integer("cohort", 0, _MOST_INTEGER),
        directory_version=reader.integer("directory_version", 0, _MOST_INTEGER),
        directory_sha256=reader.exactly("directory_sha256", DIGEST_BYTES),
        binding=reader.exactly("binding", DIGEST_BYTES),
        schema_sha256=reader.exactly("schema_sha256", DIGEST_BYTES),
        values=reader.integer("values", 1, MOST_WORDS - 1),
        fixed_point=FixedPoint(
            fraction_bits=reader.integer("fraction_bits", 0, 64),
            coordinate_bound=_read_real(reader, "coordinate_bound"),
            norm_bound=_read_real(reader, "norm_bound"),
            noise_tail=reader.integer("noise_tail", 0, _MOST_INTEGER),
        ),
        full_weight=reader.integer("full_weight", 1, _MOST_INTEGER),
        generator=_generator(reader.integer("generator", 1, 255)),
        least_members=reader.integer("least_members", LEAST_MEMBERS, MOST_MEMBERS),
        most_members=reader.integer("most_members", LEAST_MEMBERS, MOST_MEMBERS),
        noise_sigma=_read_real(reader, "noise_sigma"),
        deadlines_unix_s=_deadlines(reader),
    )


def _problem(config: RoundConfig) -> str | None:
    for name in ("project", "campaign_id"):
        value = getattr(config, name)
        if not (0 < len(value) <= TEXT_CHARS and value.isascii() and value.isprintable()):
            return f"{name}: expected 1 to {TEXT_CHARS} printable ASCII characters"
    sizes = {
        "round_id": ROUND_ID_BYTES,
        "directory_sha256": DIGEST_BYTES,
        "binding": DIGEST_BYTES,
        "schema_sha256": DIGEST_BYTES,
    }
    for name, size in sizes.items():
        if len(getattr(config, name)) != size:
            return f"{name}: expected {size} bytes, found {len(getattr(config, name))}"
    if not LEAST_MEMBERS <= config.least_members <= config.most_members <= MOST_MEMBERS:
        return (
            f"members: expected {LEAST_MEMBERS} ≤ least ≤ most ≤ {MOST_MEMBERS}, found "
            f"{config.least_members} and {config.most_members}"
        )
    if not 1 <= config.values < MOST_WORDS or config.full_weight < 1:
        return f"expected at least one value and a full weight, found {config.values} values"
    deadlines = config.deadlines_unix_s
    are_times = len(deadlines) == PHASES and all(map(math.isfinite, deadlines))
    if not are_times or list(deadlines) != sorted(deadlines):  # (a NaN is never too late)
        return f"deadlines_unix_s: expected {PHASES} ascending times, found {deadlines}"
    if not 0 <= config.noise_sigma < 2**31:
        return f"noise_sigma: expected 0 or more, found {config.noise_sigma}"
    return None


def _real(value: float) -> bytes:
    return struct.pack(">d", value)


def _read_real(reader: Reader, name: str) -> float:
    value: float = struct.unpack(">d", reader.exactly(name, 8))[0]
    return value


def _deadlines(reader: Reader) -> tuple[float, ...]:
    raw = reader.exactly("deadlines_unix_s", 8 * PHASES)
    return tuple(struct.unpack(f">{PHASES}d", raw))


def _generator(value: int) -> Generator:
    try:
        return Generator(value)
    except ValueError:
        raise PeerError(f"expected a known keystream, found number {value}: update") from None
