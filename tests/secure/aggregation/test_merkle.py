"""The Merkle tree: known roots of RFC 6962's own test data, and every proof of every small tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError

# The reference inputs of certificate-transparency's merkle_tree tests, and the roots over the first n.
INPUTS = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def leaves(count: int) -> list[bytes]:
    return [merkle.leaf_digest(bytes([i])) for i in range(count)]


@pytest.mark.parametrize("count", ROOTS)
def test_roots_are_those_of_certificate_transparency(count: int) -> None:
    assert merkle.root([merkle.leaf_digest(i) for i in INPUTS[:count]]).hex() == ROOTS[count]


def test_the_empty_tree() -> None:
    assert merkle.root([]) == merkle.EMPTY_ROOT


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33])
def test_every_leaf_is_proven_where_it_stands_and_nowhere_else(size: int) -> None:
    tree = leaves(size)
    root = merkle.root(tree)
    proofs = merkle.all_inclusion_proofs(tree)
    for index in range(size):
        assert proofs[index] == merkle.inclusion_proof(tree, index)
        merkle.check_inclusion(tree[index], index, size, proofs[index], root)
        for other in range(size):
            if other != index:
                with pytest.raises(IntegrityError):
                    merkle.check_inclusion(tree[index], other, size, proofs[index], root)


@given(st.integers(1, 40), st.data())
def test_a_longer_log_continues_a_shorter_one(size: int, data: st.DataObject) -> None:
    old_size = data.draw(st.integers(1, size))
    tree = leaves(size)
    proof = merkle.consistency_proof(tree, old_size)
    old, new = merkle.root(tree[:old_size]), merkle.root(tree)
    merkle.check_consistency(old, old_size, new, size, proof)
    other = merkle.root([merkle.leaf_digest(b"other"), *tree[1:]])
    with pytest.raises(IntegrityError):
        merkle.check_consistency(old, old_size, other, size, proof)


@given(st.integers(2, 30), st.data())
def test_a_changed_proof_is_refused(size: int, data: st.DataObject) -> None:
    tree, index = leaves(size), data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(tree, index)
    place = data.draw(st.integers(0, len(proof) - 1))
    proof[place] = bytes([proof[place][0] ^ 1]) + proof[place][1:]
    with pytest.raises(IntegrityError):
        merkle.check_inclusion(tree[index], index, size, proof, merkle.root(tree))
    with pytest.raises(IntegrityError):
        merkle.check_inclusion(tree[index], index, size, proof[:-1], merkle.root(tree))
