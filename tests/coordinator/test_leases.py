"""A round goes on without clients that are gone, if its owner says so and enough others are there."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.coordinator.fleet import Fleet, campaign

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.config_leases import LeaseSection
from offsite.coordinator.leases import GONE_S, HOLD_S, Patience, is_gone, silent_s
from offsite.coordinator.local_grid import LocalGrid
from offsite.secure.errors import ConfigError
from offsite.secure.names import node_id


class Silent(LocalGrid):
    """A client of it never answers."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        super().__init__(fleet.apps())
        self._silent = node_id(name)

    def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
        return [
            m for m in super().pull_messages(message_ids) if m.metadata.src_node_id != self._silent
        ]


def _run(
    folder: Path, leave_s: float, silent_for_s: float, **changes: object
) -> tuple[float, dict[str, float]]:
    """How long the round took on the campaign's clock, and what is said of it."""
    fleet = Fleet()
    settings: dict[str, object] = {
        "rounds": 1,
        "min_clients": 3,
        "deadline_s": 3000.0,
        "poll_s": 10.0,
    }
    subject = campaign(folder, fleet, Silent(fleet, "carol"), **(settings | changes))
    record = replace(subject.record, settings=replace(subject.record.settings, leave_s=leave_s))
    gone = node_id("carol")
    subject = replace(
        subject, record=record, silent_s=lambda node: silent_for_s if node == gone else 0.0
    )
    began = fleet.now
    run_campaign(subject)
    (row,) = record.store.rounds(1)
    return fleet.now - began, dict(row.metrics)


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the steady clock is a second later."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(
        "offsite.coordinator.replies.Patience",
        lambda leave_s, silence: Patience(leave_s, silence, lambda: float(next(ticks))),
    )


def test_a_round_goes_on_without_who_is_gone(tmp_path: Path) -> None:
    took_s, metrics = _run(tmp_path, leave_s=600.0, silent_for_s=601.0)
    assert took_s < 3000.0
    assert (metrics["updates"], metrics["late"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("leave_s", "silent_for_s", "changes"),
    [
        (0.0, 1e9, {}),  # not asked for
        (600.0, 599.0, {}),  # heard of lately
        (600.0, 1e9, {"min_replies": 3, "attempts": 1}),  # too few without it
    ],
)
def test_else_it_waits_until_the_deadline(
    leave_s: float, silent_for_s: float, changes: dict[str, object], tmp_path: Path
) -> None:
    try:
        took_s, _ = _run(tmp_path, leave_s, silent_for_s, **changes)
    except Exception as error:  # noqa: BLE001 - too few is a failure of the campaign
        assert "expected at least 3 updates" in str(error)
        return
    assert took_s >= 3000.0


def test_silence_counts_while_somebody_listens() -> None:
    assert silent_s(100.0, since_unix_s=5000.0, now_unix_s=5010.0) == 10.0  # after a restart
    assert silent_s(None, 5000.0, 5010.0) == 10.0
    assert silent_s(5004.0, 5000.0, 5010.0) == 6.0


def test_a_clock_that_jumps_makes_nobody_gone() -> None:
    silence, steady = {1: 0.0}, [0.0]
    patience = Patience(600.0, silence.__getitem__, lambda: steady[0])
    silence[1] = 10_000.0  # the wall clock was set forward
    assert not patience.is_over({1}, True)
    steady[0] += 20.0
    silence[1] = 0.0  # the next sign of life
    assert not patience.is_over({1}, True)
    silence[1] = 601.0
    assert not patience.is_over({1}, True)
    steady[0] += HOLD_S
    assert patience.is_over({1}, True)
    assert not patience.is_over({1}, False) and not patience.is_over({1}, True)


def test_who_has_not_been_heard_of_is_gone() -> None:
    assert is_gone(None, 0.0) and is_gone(0.0, GONE_S + 1) and not is_gone(0.0, GONE_S)


def test_settings_are_bounded() -> None:
    assert LeaseSection().leave_s == 0.0
    with pytest.raises(ConfigError, match="every 20 seconds"):
        LeaseSection(leave_s=5.0)
