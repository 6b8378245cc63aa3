"""What the messages of a round hold: the instruction and its reply, as Flower records.

    instruction  "arrays"   the adapter to start from, NumPy fp32, by adapter name
                 "config"   {"plan": signed envelope, "terms": signed terms of the secure sum,
                             "server-round": number}
    reply        the first step of the secure sum that the update goes into (`exchange`)

An adapter has one digest wherever it is: SHA-256 over names, dtypes, shapes and bytes, by name.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from torch import Tensor

from offsite.emulator.rounds.numpy_arrays import NUMPY_STYPE, numpy_values
from offsite.emulator.rounds.plan import SignedPlan, open_plan
from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityPublicKey

ARRAYS = "arrays"
CONFIG = "config"
PLAN = "plan"
SERVER_ROUND = "server-round"
TERMS = "terms"


def adapter_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of an adapter; the order of its tensors does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def adapter_to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """The tensors as a Flower record of NumPy arrays, in the same order."""
    return ArrayRecord({name: Array(_numpy(tensor)) for name, tensor in tensors.items()})


def adapter_from_record(record: ArrayRecord, schema: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """The fp32 tensors in a record, in the order of `schema`.

    Raises:
        PeerError: naming the first tensor that is missing, unknown, misshapen or of another dtype.
    """
    for name in schema.keys() - record.keys():
        raise PeerError(f"adapter: tensor {name} is missing")
    for name in record.keys() - schema.keys():
        raise PeerError(f"adapter: tensor {name!r:.200} is unknown")
    return {name: _tensor(name, record[name], spec) for name, spec in schema.items()}


def read_instruction(
    message: Message,
    coordinator_key: IdentityPublicKey,
    schema: Mapping[str, TensorSpec],
    now_unix_s: float,
) -> tuple[SignedPlan, dict[str, Tensor]]:
    """The plan and the adapter of an instruction, after signature, deadline and digest.

    Raises:
        PeerError: it is malformed, not signed by the coordinator, late, or its adapter is not
            the one that the plan names.
    """
    signed = read_plan(message, coordinator_key, now_unix_s)
    return signed, read_adapter(message, signed, schema)


def read_plan(
    message: Message, coordinator_key: IdentityPublicKey, now_unix_s: float
) -> SignedPlan:
    """The plan of an instruction by itself: it says of which release the adapter is.

    Raises:
        PeerError: it is malformed, not signed by the coordinator, or late.
    """
    if message.has_error():
        raise PeerError("instruction: expected content, it holds an error")
    content = message.content
    config, arrays = content.get(CONFIG), content.get(ARRAYS)
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise PeerError("instruction: expected a config and arrays")
    plan = config.get(PLAN)
    if not isinstance(plan, bytes):
        raise PeerError("instruction: expected a signed plan in its config")
    return open_plan(plan, coordinator_key, now_unix_s)


def read_terms(message: Message) -> bytes:
    """The signed terms of the sum, in an instruction whose plan `read_plan` has opened.

    Raises:
        PeerError: there are none: this edge gives its update to a secure sum or to nobody.
    """
    terms = message.content[CONFIG].get(TERMS)
    if not isinstance(terms, bytes):
        raise PeerError("instruction: expected the signed terms of a secure sum, found none")
    return terms


def read_adapter(
    message: Message, signed: SignedPlan, schema: Mapping[str, TensorSpec]
) -> dict[str, Tensor]:
    """The adapter of an instruction whose plan `read_plan` has opened.

    Raises:
        PeerError: it does not fit the schema, or is not the one that the plan names.
    """
    arrays = message.content[ARRAYS]
    assert isinstance(arrays, ArrayRecord), "read_plan() has looked"
    adapter = adapter_from_record(arrays, schema)
    if adapter_digest(adapter) != signed.plan.adapter_sha256:
        raise IntegrityError("instruction: the adapter is not the one that the plan names")
    return adapter


def _numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.detach().cpu().contiguous().numpy()


def _tensor(name: str, array: Array, spec: TensorSpec) -> Tensor:
    if array.stype != NUMPY_STYPE or array.dtype != "float32" or spec.dtype != "F32":
        raise PeerError(f"adapter: tensor {name}: expected float32, found {array.dtype!r:.40}")
    if array.shape != spec.shape:
        raise PeerError(f"adapter: tensor {name}: expected {spec.shape}, found {array.shape}")
    # A copy: what was read from bytes is not writable, and not always in C order.
    return torch.from_numpy(np.array(numpy_values(name, array), dtype=np.float32, order="C"))
