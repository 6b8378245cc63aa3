"""The same sum with the primitives of Flower's SecAgg+, called as its own code calls them.

From `flwr.client.mod.secure_aggregation.secaggplus_mod` (`_collect_masked_vectors`) and
`flwr.server.workflow.secure_aggregation.secaggplus_workflow` (`unmask_stage`) of 1.41, complete
graph, defaults of the workflow (clipping 8, 2^22 levels, modulus 2^32). Keys and shares of all
clients are made beforehand; messages and Fernet are left out, in Flower's favour. Only for
comparison: the masks have 28 to 32 bits of entropy (`docs/guarantees.md`).
"""

import os
import time

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
)

from benchmarks.secure_aggregation.shape import Shape, updates

CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE = 8.0, 1 << 22, 1 << 32


def measure(shape: Shape) -> dict[str, object]:
    """One client's masking and the server's unmasking."""
    keys = [generate_key_pairs() for _ in range(shape.clients)]
    threshold = 2 * shape.clients // 3 + 1
    survivors = range(shape.clients - shape.dropouts)
    mask_s, masked = _mask(shape, keys)
    secrets = [os.urandom(32) for _ in survivors]
    secrets += [private_key_to_bytes(keys[i][0]) for i in range(len(survivors), shape.clients)]
    shares = [create_shares(secret, threshold, shape.clients) for secret in secrets]
    unmask_s = _unmask(shape, keys, [share[:threshold] for share in shares], masked)
    return {
        "mask_s": round(mask_s, 4),
        "unmask_s": round(unmask_s, 4),
        "bytes_up_per_value": masked[1].nbytes / shape.values,
    }


Keys = list[tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]]
Arrays = list["np.ndarray"]


def _mask(shape: Shape, keys: Keys) -> tuple[float, Arrays]:
    """Of client 0."""
    update = updates(shape, "edge-000")
    started = time.perf_counter()
    quantised = quantize(parameters_multiply([update], 1.0), CLIPPING_RANGE, TARGET_RANGE)
    vector = factor_combine(TARGET_RANGE, quantised)
    dimensions = [array.shape for array in vector]
    vector = parameters_addition(vector, pseudo_rand_gen(os.urandom(32), MOD_RANGE, dimensions))
    for _, public in keys[1:]:
        mask = pseudo_rand_gen(generate_shared_key(keys[0][0], public), MOD_RANGE, dimensions)
        vector = parameters_subtraction(vector, mask)
    vector = parameters_mod(vector, MOD_RANGE)
    return time.perf_counter() - started, vector


def _unmask(shape: Shape, keys: Keys, shares: list[list[bytes]], vector: Arrays) -> float:
    """Over all clients; what comes out is not looked at, the work is the same."""
    survivors = shape.clients - shape.dropouts
    started = time.perf_counter()
    for client, client_shares in enumerate(shares):
        secret = combine_shares(client_shares)
        if client < survivors:
            mask = pseudo_rand_gen(secret, MOD_RANGE, get_parameters_shape(vector))
            vector = parameters_subtraction(vector, mask)
            continue
        private = bytes_to_private_key(secret)
        for neighbour in range(survivors):
            seed = generate_shared_key(private, keys[neighbour][1])
            mask = pseudo_rand_gen(seed, MOD_RANGE, get_parameters_shape(vector))
            vector = parameters_addition(vector, mask)
    parameters_mod(vector, MOD_RANGE)
    return time.perf_counter() - started
