"""Flower messages as bytes, and back.

A `flwr.app.Message` becomes a serialised `offsite.v1.RoundMessage` and the same message again:
arrays keep dtype, shape, serialisation type and bytes, so an array of our own `stype` travels as
well as NumPy's. Only Flower's task ids stay behind; they mean nothing outside the process.

Rules for what arrives, each violated one a `PeerError` that names the place:

- what the bytes hold is counted before protobuf makes objects of it (`wire_count`), and counts are
  compared with their limits before anything is iterated;
- a NumPy array's header is read first, without pickle, and must agree with the declared dtype and
  shape, and the data must be exactly as long as both say;
- ids, texts and numbers of the metadata are bounded and finite.

Large arrays are never copied on their way to a file (`message_parts`) and need not be read from one
(`stored_array`): a coordinator handles updates larger than it would want in memory.

Protobuf serialises at most 2 GiB; a larger message is refused when it is made.
"""

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from google.protobuf.message import DecodeError, EncodeError

from offsite.emulator.rounds.file_window import FileWindow
from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.message_parts import Part, content_parts
from offsite.emulator.rounds.numpy_arrays import NUMPY_STYPE, check_numpy_array
from offsite.emulator.rounds.stored_array import StoredArray, size_of
from offsite.emulator.rounds.wire_count import (
    DIMENSIONS,
    RECORDS,
    VALUES,
    Extent,
    check_field_count,
    without_large_arrays,
)
from offsite.secure.errors import ConfigError, PeerError
from offsite.secure.limits import MIB, ROUND_MESSAGE_BYTES, TENSORS
from offsite.v1 import rounds_pb2 as pb

MESSAGE_BYTES = min(ROUND_MESSAGE_BYTES, 2048 * MIB - 1)
"""What protobuf can serialise at most."""
STORED_BYTES = MIB
"""A smaller array is read with its message."""
_TOKEN_BYTES = 16
NAME_CHARS = 512
ID_CHARS = 64
REASON_CHARS = 500
CATEGORIES = frozenset({MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY})

Stored = Mapping[bytes, tuple[Path, Extent]]
"""Where the data lie for which a mark stands."""


def message_to_bytes(message: Message) -> bytes:
    """The message as a serialised `RoundMessage`, the same bytes for equal messages.

    Raises:
        ConfigError: it holds what a round message cannot carry, or is larger than 2 GiB.
    """
    return b"".join(message_to_parts(message))


def message_to_parts(message: Message) -> Iterator[Part]:
    """The parts of `message_to_bytes`, one after the other, without a copy of the arrays.

    Raises:
        ConfigError: it holds what a round message cannot carry, or is larger than 2 GiB.
    """
    size = sum(size_of(a) for r in _arrays_of(message) for a in r.values())
    if size > MESSAGE_BYTES:
        raise ConfigError(f"a round message holds at most {MESSAGE_BYTES} bytes, found {size}")
    try:
        metadata = _wire_metadata(message.metadata)
        if message.has_error():
            reason = (message.error.reason or "")[:REASON_CHARS]
            error = pb.RoundError(code=message.error.code, reason=reason)
            wire = pb.RoundMessage(metadata=metadata, error=error)
            yield wire.SerializeToString(deterministic=True)
            return
        records = {name: _wire_record(name, record) for name, record in message.content.items()}
        yield from content_parts(metadata, records)
    except (ValueError, TypeError, EncodeError) as error:
        raise ConfigError(f"a round message cannot carry this: {error}") from error


def message_from_bytes(data: bytes) -> Message:
    """The message that `message_to_bytes` serialised.

    Raises:
        PeerError: the bytes are malformed or over a limit.
    """
    _check_size(len(data))
    check_field_count(data)
    return _parsed(data, {})


def message_from_file(path: Path) -> Message:
    """The message in a file; arrays of `STORED_BYTES` or more stay there until they are read.

    One that NumPy wrote is read all the same, for its header has to fit.

    Raises:
        PeerError: the bytes are malformed or over a limit.
        OSError: the file cannot be read.
    """
    with FileWindow(path) as window:
        _check_size(len(window))
        check_field_count(window)
        token = secrets.token_bytes(_TOKEN_BYTES)
        data, extents = without_large_arrays(window, STORED_BYTES, token)
    return _parsed(data, {mark: (path, extent) for mark, extent in extents.items()})


def _check_size(size: int) -> None:
    if size > MESSAGE_BYTES:
        raise PeerError(f"round message: expected at most {MESSAGE_BYTES} bytes, got {size}")


def _parsed(data: bytes, stored: Stored) -> Message:
    try:
        wire = pb.RoundMessage.FromString(data)
    except DecodeError as error:
        raise PeerError("round message: not a serialised RoundMessage") from error
    metadata = _metadata(wire.metadata)
    match wire.WhichOneof("body"):
        case "error":
            _at_most(len(wire.error.reason), REASON_CHARS, "characters of the error's reason")
            body: RecordDict | Error = Error(wire.error.code, wire.error.reason or None)
        case "content":
            body = _record_dict(wire.content, stored)
        case _:
            raise PeerError("round message: expected content or an error, found neither")
    return message_with_metadata(metadata, body)


def _arrays_of(message: Message) -> Iterable[ArrayRecord]:
    return message.content.array_records.values() if message.has_content() else ()


def _wire_metadata(metadata: Metadata) -> pb.RoundMetadata:
    return pb.RoundMetadata(
        run_id=metadata.run_id,
        message_id=metadata.message_id,
        src_node_id=metadata.src_node_id,
        dst_node_id=metadata.dst_node_id,
        reply_to_message_id=metadata.reply_to_message_id,
        group_id=metadata.group_id,
        created_at_unix_s=metadata.created_at,
        ttl_s=metadata.ttl,
        message_type=metadata.message_type,
    )


def _wire_record(
    name: str, record: ArrayRecord | MetricRecord | ConfigRecord
) -> pb.Record | ArrayRecord:
    """A record as protobuf; one of arrays stays as it is."""
    if isinstance(record, ArrayRecord):
        return record
    wire = pb.Record()
    if isinstance(record, MetricRecord):
        wire.metrics.SetInParent()
        for key, value in record.items():
            _fill_metric(wire.metrics.values[key], f"{name}.{key}", value)
    else:
        wire.config.SetInParent()
        for key, setting in record.items():
            _fill_config(wire.config.values[key], f"{name}.{key}", setting)
    return wire


def _fill_metric(wire: pb.MetricValue, where: str, value: object) -> None:
    match value:
        case int():
            wire.integer = value
        case float():
            wire.real = value
        case _:
            raise ConfigError(f"metric {where}: expected int or float, found {type(value)}")


def _fill_config(wire: pb.ConfigValue, where: str, value: object) -> None:
    match value:
        case bool():  # before int: a bool is one
            wire.boolean = value
        case int():
            wire.integer = value
        case float():
            wire.real = value
        case str():
            wire.text = value
        case bytes():
            wire.raw = value
        case _:
            raise ConfigError(f"setting {where}: expected a scalar, found {type(value)}")


def _metadata(wire: pb.RoundMetadata) -> Metadata:
    for field in ("message_id", "reply_to_message_id", "group_id", "message_type"):
        _at_most(len(getattr(wire, field)), ID_CHARS, f"characters of {field}")
    if not (math.isfinite(wire.created_at_unix_s) and math.isfinite(wire.ttl_s)):
        raise PeerError("round message: created_at and ttl must be finite")
    if wire.message_type.partition(".")[0] not in CATEGORIES:
        raise PeerError(
            f"round message: expected type train, evaluate or query, found {wire.message_type!r}"
        )
    try:
        return Metadata(
            run_id=wire.run_id,
            message_id=wire.message_id,
            src_node_id=wire.src_node_id,
            dst_node_id=wire.dst_node_id,
            reply_to_message_id=wire.reply_to_message_id,
            group_id=wire.group_id,
            created_at=wire.created_at_unix_s,
            ttl=wire.ttl_s,
            message_type=wire.message_type,
        )
    except ValueError as error:
        raise PeerError(f"round message: {error}") from error


def _record_dict(wire: pb.RecordDict, stored: Stored) -> RecordDict:
    _at_most(len(wire.records), RECORDS, "records")
    arrays = sum(len(record.arrays.arrays) for record in wire.records.values())
    _at_most(arrays, TENSORS, "arrays")
    names = sorted(wire.records)
    return RecordDict({name: _record(name, wire.records[name], stored) for name in names})


def _record(
    name: str, wire: pb.Record, stored: Stored
) -> ArrayRecord | MetricRecord | ConfigRecord:
    _at_most(len(name), NAME_CHARS, "characters of a record's name")
    match wire.WhichOneof("kind"):
        case "arrays":
            return _array_record(name, wire.arrays, stored)
        case "metrics":
            return _metrics(name, wire.metrics.values)
        case "config":
            return _config(name, wire.config.values)
        case _:
            raise PeerError(f"round message: record {name!r} has no kind")


def _array_record(name: str, wire: pb.ArrayRecord, stored: Stored) -> ArrayRecord:
    record = ArrayRecord()
    for array in wire.arrays:
        _at_most(len(array.name), NAME_CHARS, f"characters of a name in record {name!r}")
        if array.name in record:
            raise PeerError(f"round message: array {name}.{array.name} appears twice")
        record[array.name] = _array(f"{name}.{array.name}", array, stored)
    return record


def _array(where: str, wire: pb.NamedArray, stored: Stored) -> Array:
    _at_most(len(wire.shape), DIMENSIONS, f"dimensions of array {where}")
    _at_most(max(len(wire.dtype), len(wire.stype)), ID_CHARS, f"characters of a type of {where}")
    dtype, shape, stype, data = wire.dtype, tuple(wire.shape), wire.stype, wire.data
    if stored and (found := stored.get(data)) is not None:
        path, extent = found
        lying = StoredArray(dtype, shape, stype, path, extent.offset, extent.size)
        if stype != NUMPY_STYPE:
            return lying
        data = lying.data
    array = Array(dtype=dtype, shape=shape, stype=stype, data=data)
    if array.stype == NUMPY_STYPE:
        check_numpy_array(where, array)
    return array


def _metrics(name: str, values: Mapping[str, pb.MetricValue]) -> MetricRecord:
    _at_most(len(values), VALUES, f"values in record {name!r}")
    record = MetricRecord()
    for key in sorted(values):
        record[_key(name, key)] = _scalar(f"{name}.{key}", values[key])
    return record


def _config(name: str, values: Mapping[str, pb.ConfigValue]) -> ConfigRecord:
    _at_most(len(values), VALUES, f"values in record {name!r}")
    record = ConfigRecord()
    for key in sorted(values):
        record[_key(name, key)] = _scalar(f"{name}.{key}", values[key])
    return record


def _key(name: str, key: str) -> str:
    _at_most(len(key), NAME_CHARS, f"characters of a name in record {name!r}")
    return key


def _scalar(where: str, wire: pb.MetricValue | pb.ConfigValue) -> int | float:
    kind = wire.WhichOneof("kind")
    if kind is None:
        raise PeerError(f"round message: value {where} has no kind")
    return getattr(wire, kind)  # type: ignore[no-any-return]


def _at_most(found: int, limit: int, what: str) -> None:
    if found > limit:
        raise PeerError(f"round message: expected at most {limit} {what}, found {found}")
