"""A Merkle tree over an append-only list, its inclusion and its consistency proofs.

    leaf  = SHA-256(0x00 | bytes)        node = SHA-256(0x01 | left | right)

The tree over n leaves splits at the largest power of two below n. A root commits to all leaves and
their order; an inclusion proof shows that a leaf is in it, a consistency proof that an older tree
is a prefix of a newer one, each with about log2 n digests.

Source: RFC 6962, section 2.1 (Certificate Transparency); verification as in RFC 9162, 2.1.3-2.1.4.
"""

import hashlib
from collections.abc import Sequence

from offsite.secure.errors import IntegrityError

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_digest(leaf: bytes) -> bytes:
    """The digest of a leaf's exact bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf digests, in order."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    half = _split(len(leaves))
    return _node(root(leaves[:half]), root(leaves[half:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Digests, from the leaf upwards, that lead from leaf `index` to the root."""
    if not 0 <= index < len(leaves):
        raise IntegrityError(f"expected a leaf from 0 to {len(leaves) - 1}, found {index}")
    if len(leaves) == 1:
        return []
    half = _split(len(leaves))
    if index < half:
        return [*inclusion_proof(leaves[:half], index), root(leaves[half:])]
    return [*inclusion_proof(leaves[half:], index - half), root(leaves[:half])]


def all_inclusion_proofs(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """The proof of every leaf, in order; each node is computed once."""
    return _with_proofs(leaves)[1]


def check_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> None:
    """Raises IntegrityError unless the leaf digest stands at `index` of the tree of `size`."""
    if not 0 <= index < size:
        raise _wrong("inclusion")
    position, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _wrong("inclusion")
        if position % 2 or position == last:
            found = _node(sibling, found)
            while not position % 2 and position:
                position, last = position // 2, last // 2
        else:
            found = _node(found, sibling)
        position, last = position // 2, last // 2
    if last or found != expected_root:
        raise _wrong("inclusion")


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """Digests that show that the first `old_size` leaves are a prefix of all."""
    if not 0 < old_size <= len(leaves):
        raise IntegrityError(f"expected a size from 1 to {len(leaves)}, found {old_size}")
    return _consistency(leaves, old_size, is_whole=True)


def check_consistency(
    old_root: bytes, old_size: int, new_root: bytes, new_size: int, proof: Sequence[bytes]
) -> None:
    """Raises IntegrityError unless the tree of `new_size` continues that of `old_size`."""
    if not 0 < old_size <= new_size:
        raise _wrong("consistency")
    if old_size == new_size:
        if proof or old_root != new_root:
            raise _wrong("consistency")
        return
    steps = list(proof)
    if old_size & (old_size - 1) == 0:  # a whole subtree of the new tree: its root is known
        steps.insert(0, old_root)
    if not steps:
        raise _wrong("consistency")
    position, last = old_size - 1, new_size - 1
    while position % 2:
        position, last = position // 2, last // 2
    found_old = found_new = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise _wrong("consistency")
        if position % 2 or position == last:
            found_old, found_new = _node(step, found_old), _node(step, found_new)
            while not position % 2 and position:
                position, last = position // 2, last // 2
        else:
            found_new = _node(found_new, step)
        position, last = position // 2, last // 2
    if last or found_old != old_root or found_new != new_root:
        raise _wrong("consistency")


def _with_proofs(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    """The root of at least one leaf, and the proof of every leaf."""
    if len(leaves) == 1:
        return leaves[0], [[]]
    half = _split(len(leaves))
    left, left_proofs = _with_proofs(leaves[:half])
    right, right_proofs = _with_proofs(leaves[half:])
    for proof in left_proofs:
        proof.append(right)
    for proof in right_proofs:
        proof.append(left)
    return _node(left, right), left_proofs + right_proofs


def _consistency(leaves: Sequence[bytes], old_size: int, *, is_whole: bool) -> list[bytes]:
    if old_size == len(leaves):
        return [] if is_whole else [root(leaves)]
    half = _split(len(leaves))
    if old_size <= half:
        return [*_consistency(leaves[:half], old_size, is_whole=is_whole), root(leaves[half:])]
    return [*_consistency(leaves[half:], old_size - half, is_whole=False), root(leaves[:half])]


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _wrong(kind: str) -> IntegrityError:
    return IntegrityError(
        f"expected a proof of {kind} that leads to the signed root, found another: the log was "
        "changed, or the proof belongs to another one"
    )
