"""Entries: every kind there and back, and no second encoding of any."""

import dataclasses
import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import DIGEST, SET_A, implementation, reserved

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger import bodies
from offsite.secure.privacy.ledger.canonical import canonical
from offsite.secure.privacy.ledger.entries import KINDS, Entry, entry_digest
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

TEXTS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
DIGESTS = st.binary(min_size=32, max_size=32)
COUNTS = st.integers(0, 2**40)
SIGMAS = st.floats(0.01, 100.0)
EPSILONS = st.floats(0.01, 100.0)
UNITS = st.sampled_from(Unit)
RATES = st.fractions(Fraction(1, 10**6), 1, max_denominator=10**6)
STEPS = st.integers(1, 10**6)

MECHANISMS: st.SearchStrategy[Mechanism] = st.one_of(
    st.builds(PoissonGaussian, SIGMAS, RATES, STEPS, UNITS),
    st.builds(
        TruncatedPoissonGaussian, SIGMAS, RATES, STEPS, st.just(1000), st.integers(1, 1000), UNITS
    ),
    st.builds(Gaussian, SIGMAS, STEPS, UNITS),
)
ADAPTIVITIES = st.sampled_from(bodies.Adaptivity)
STATED = st.none() | st.builds(
    bodies.StatedEpsilon, st.just(1e-5), EPSILONS, st.none() | EPSILONS, EPSILONS, TEXTS
)
BODIES: dict[str, st.SearchStrategy[bodies.Body]] = {
    "opened": st.builds(bodies.Opened, TEXTS, DIGESTS, DIGESTS, TEXTS),
    "limit_set": st.builds(
        bodies.LimitSet, st.just(8.0), st.floats(1e-9, 0.1), st.none() | st.floats(0.1, 8.0)
    ),
    "data_set": st.builds(
        bodies.DataSetAdded, DIGESTS, UNITS, overlaps=st.lists(DIGESTS, max_size=3).map(tuple)
    ),
    "proof": st.builds(bodies.StartProof, TEXTS, DIGESTS, st.booleans()),
    "reserved": st.builds(
        bodies.Reserved,
        TEXTS,
        DIGESTS,
        MECHANISMS,
        ADAPTIVITIES,
        SIGMAS,
        SIGMAS,
        st.just(implementation()),
        STATED,
    ),
    "claimed": st.builds(bodies.Claimed, TEXTS, COUNTS, COUNTS, COUNTS, STEPS, DIGESTS),
    "committed": st.builds(bodies.Committed, STEPS, COUNTS, DIGESTS),
    "charged": st.builds(bodies.Charged, STEPS, COUNTS, TEXTS),
    "closed": st.builds(bodies.Closed, TEXTS, COUNTS),
    "refused": st.builds(bodies.Refused, TEXTS, DIGESTS, MECHANISMS, COUNTS, TEXTS),
    "aborted": st.builds(bodies.Aborted, TEXTS, COUNTS, COUNTS, TEXTS),
    "released_other": st.builds(
        bodies.ReleasedOther, TEXTS, DIGESTS, MECHANISMS, ADAPTIVITIES, DIGESTS
    ),
    "audit_guesses": st.builds(bodies.AuditGuesses, TEXTS, DIGESTS),
    "audit_result": st.builds(
        bodies.AuditResult,
        TEXTS,
        st.sampled_from(bodies.AuditKind),
        DIGESTS,
        st.booleans(),
        st.none() | STEPS,
        st.none() | EPSILONS,
        st.none() | st.floats(0.5, 1.0),
    ),
}
ENTRIES = st.builds(
    Entry,
    COUNTS,
    DIGESTS,
    st.binary(min_size=16, max_size=16),
    st.floats(0.0, 2.0**37),
    st.one_of(*BODIES.values()),
)
ENTRY = Entry(4, DIGEST, b"\x5a" * 16, 1_780_000_000.0, reserved())


def test_every_kind_is_tried_here() -> None:
    assert BODIES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", BODIES)
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_an_entry_comes_back(kind: str, data: st.DataObject) -> None:
    entry = Entry(1, DIGEST, b"\x5a" * 16, 1.5, data.draw(BODIES[kind]))
    assert entry.kind == kind
    assert Entry.from_bytes(entry.to_bytes()) == entry


@given(ENTRIES, ENTRIES)
@settings(deadline=None)
def test_different_entries_are_different_bytes(one: Entry, other: Entry) -> None:
    assert (one == other) == (one.to_bytes() == other.to_bytes())


@given(ENTRIES, st.data())
@settings(deadline=None)
def test_an_entry_has_one_encoding(entry: Entry, data: st.DataObject) -> None:
    """Whatever other bytes are read as an entry are the encoding of that other entry."""
    written = bytearray(entry.to_bytes())
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Entry.from_bytes(bytes(written))
    except IntegrityError:
        return
    assert found != entry
    assert found.to_bytes() == bytes(written)


def changed(path: tuple[str, ...], value: object) -> bytes:
    document = json.loads(ENTRY.to_bytes())
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return canonical(document)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("schema",), 2, "schema"),
        (("kind",), "spent", "known kind"),
        (("kind",), ["reserved"], "known kind"),
        (("kind",), "claimed", "fields"),
        (("extra",), 1, "fields"),
        (("seq",), -1, "at least 0"),
        (("seq",), "4", "expected int"),
        (("seq",), True, "expected int"),
        (("previous",), "ab", "32 bytes"),
        (("previous",), DIGEST.hex().upper(), "one form"),
        (("salt",), "zz", "expected bytes"),
        (("time_unix_s",), 1e15, "time_unix_s"),
        (("time_unix_s",), None, "expected float"),
        (("body", "extra"), 1, "fields"),
        (("body", "campaign_id"), "", "1 to 200"),
        (("body", "campaign_id"), "a\nb", "one line"),
        (("body", "campaign_id"), "a" * 201, "1 to 200"),
        (("body", "data_set"), SET_A.hex()[:-2], "32 bytes"),
        (("body", "adaptivity"), "none", "expected Adaptivity"),
        (("body", "clip_norm"), 0, "clip_norm"),
        (("body", "clip_norm"), "1", "expected float"),
        (("body", "implementation"), None, "an object"),
        (("body", "implementation", "sampler"), "shuffle", "expected Sampler"),
        (("body", "implementation", "loss_scope"), "token_mean", "expected LossScope"),
        (("body", "mechanism", "noise_multiplier"), 0, "noise_multiplier"),
        (("body", "mechanism", "sampling"), "2/200", "reduced"),
        (("body", "mechanism", "seed"), 7, "unknown fields"),
        (("body", "stated"), [], "an object"),
    ],
)
def test_a_misshapen_entry_is_refused(path: tuple[str, ...], value: object, says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        Entry.from_bytes(changed(path, value))


def test_an_entry_beyond_its_size_is_not_parsed() -> None:
    with pytest.raises(IntegrityError, match="at most 65536 bytes"):
        Entry.from_bytes(b"[" * 70_000)


def test_an_entry_holds_no_epsilon_but_the_one_that_was_stated() -> None:
    """Mechanisms are the truth. A limit is the owner's wish, and a stated epsilon is evidence."""
    allowed = {bodies.LimitSet, bodies.StatedEpsilon, bodies.AuditResult}
    for body in (*KINDS.values(), bodies.StatedEpsilon, bodies.Implementation):
        names = {field.name for field in dataclasses.fields(body)}
        assert body in allowed or not any("epsilon" in name for name in names)
        assert not names & {"seed", "loss", "losses", "batch_size", "count", "examples"}


def test_equal_entries_have_digests_that_nobody_can_guess() -> None:
    """The same words under another salt: whoever sees digests cannot try values against them."""
    other = dataclasses.replace(ENTRY, salt=b"\x5b" * 16)
    assert entry_digest(ENTRY.to_bytes()) != entry_digest(other.to_bytes())
    with pytest.raises(IntegrityError, match="16 bytes"):
        dataclasses.replace(ENTRY, salt=b"")
