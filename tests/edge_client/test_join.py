"""What `edge-client join` says to the person, and to the coordinator."""

import io
import json
import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from tests.tiny import save_tokenizer
from typer.testing import CliRunner

from offsite.edge_client.bars import Bars
from offsite.edge_client.cli import app
from offsite.edge_client.commands import join
from offsite.edge_client.commands.inspect import inspect_bundle
from offsite.edge_client.commands.join import (
    RENEWAL_PAUSE_S,
    JoinRequest,
    _listener,
    _log_into,
    _Renewals,
    _RowNotes,
    _settle_policy,
    _token_text,
)
from offsite.edge_client.commands.status import show_status
from offsite.edge_client.data import Data, read_data
from offsite.edge_client.pulse import Pulse
from offsite.edge_client.state import EdgeState
from offsite.edge_client.tokens import encode
from offsite.emulator.progress import Report
from offsite.emulator.terminal import Terminal
from offsite.emulator.training.tokens import Encoding
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.errors import ConfigError


@dataclass
class Screen:
    """A terminal that remembers lines, and what was done to which bar."""

    lines: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def progress(self, label: str) -> Iterator[Report]:
        self.bars.append(f"open {label}")
        try:
            yield lambda done, total: self.bars.append(f"{done} of {total}")
        finally:
            self.bars.append(f"close {label}")


@dataclass
class Told:
    """A pulse that remembers what it says."""

    texts: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.texts.append(text)

    def check(self) -> None:
        pass


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def terminal(screen: Screen) -> Terminal:
    return cast(Terminal, screen)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Rows of which one is too long and one is not usable."""
    rows = [{"text": "a b c"}, {"text": "the plants grow " * 40}, {"text": ""}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_data(path)


def test_what_encoding_does_to_the_rows_is_said_once(
    data: Data, screen: Screen, terminal: Terminal, tmp_path: Path
) -> None:
    rows, told = _RowNotes(terminal), Told()
    rows.note(data.report)
    before = list(screen.lines)
    assert before[0].startswith("rows.jsonl: 3 rows, 2 kept, 1 unusable")
    listener = _listener(cast(Pulse, told), terminal, rows)
    encoded = encode(data, save_tokenizer(tmp_path / "tokenizer"), Encoding(16))
    listener.data(encoded.report)
    added = screen.lines[len(before) :]
    assert "1 texts are longer than the limit and were split" in added
    for _ in range(2):
        listener.data(encoded.report)  # the next rounds
    assert screen.lines == before + added
    assert told.texts == []  # the coordinator is told nothing of the rows


def test_bars_come_one_after_the_other(screen: Screen, terminal: Terminal) -> None:
    with Bars(terminal) as bars:
        fetching, checking = bars.bar("fetching"), bars.bar("checking")
        checking(1, 9)  # what is there turns out to be damaged
        for done in (0, 2, 5, 5):  # whoever is done may say so again
            fetching(done, 5)
        checking(9, 9)
    assert screen.bars == [
        *("open checking", "1 of 9", "close checking"),
        *("open fetching", "0 of 5", "2 of 5", "5 of 5", "close fetching"),
        *("open checking", "9 of 9", "close checking"),
    ]


def test_an_error_closes_the_bar(screen: Screen, terminal: Terminal) -> None:
    with pytest.raises(KeyError), Bars(terminal) as bars:
        bars.bar("sending")(1, 9)
        raise KeyError
    assert screen.bars[-1] == "close sending"


def test_a_token_comes_as_text_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("offsite1.abc\n")
    assert _token_text(str(tmp_path / "token")) == "offsite1.abc"
    assert _token_text(" offsite1.abc ") == "offsite1.abc"
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected a file that holds a join token"):
        _token_text(str(tmp_path / "binary"))


def test_commands_that_only_look_make_no_folder(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="has not joined"):
        show_status(tmp_path / "other", terminal)
    with pytest.raises(ConfigError, match="has not joined"):
        inspect_bundle(tmp_path / "bundle", tmp_path / "other", terminal)
    assert list((tmp_path / "other").iterdir()) == []


def test_a_token_comes_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" offsite1.abc \nmore\n"))
    assert _token_text("-") == "offsite1.abc"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(ConfigError, match="standard input: expected a line with the join token"):
        _token_text("-")


def test_help_says_how_to_keep_the_token_out_of_the_list_of_processes() -> None:
    shown = CliRunner().invoke(app, ["join", "--help"], env={"COLUMNS": "200"}).output
    words = " ".join(shown.replace("│", " ").split())
    assert "a file or - keeps the token out of the list of processes" in words


def test_the_log_is_the_owners_alone(tmp_path: Path) -> None:
    logger = logging.getLogger("offsite")
    before = (logger.level, logger.handlers, logger.propagate)
    try:
        with EdgeState.open(tmp_path / "edge") as state:
            for _ in range(2):
                _log_into(state)
                assert stat.S_IMODE(state.log.stat().st_mode) == 0o600
                state.log.chmod(0o644)  # as an earlier version left it
                logger.handlers[0].close()
    finally:
        logger.level, logger.handlers, logger.propagate = before


def test_a_certificate_is_renewed_at_most_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that issues certificates that are due at once does not make a loop."""
    renewed: list[float] = []
    now_s = 5.0
    monkeypatch.setattr(join, "is_renewal_due", lambda _: True)
    monkeypatch.setattr(join, "renew_if_due", lambda _: renewed.append(now_s))
    renewals = _Renewals(cast(EdgeState, None), lambda: now_s)
    assert renewals.is_due()
    renewals.renew()
    assert not renewals.is_due()
    now_s += RENEWAL_PAUSE_S - 1
    renewals.renew()
    now_s += 1
    assert renewals.is_due()
    renewals.renew()
    assert renewed == [5.0, 5.0 + RENEWAL_PAUSE_S]


def test_a_policy_is_kept_at_later_joins_and_printed(
    screen: Screen, terminal: Terminal, tmp_path: Path
) -> None:
    def settled(**changes: float) -> PolicyFloor:
        request = JoinRequest("token", Path("data"), tmp_path, 0, False, **changes)  # type: ignore[arg-type]
        with EdgeState.open(tmp_path / "state") as state:
            _settle_policy(request, state, terminal)
            return state.policy()

    assert settled() == PolicyFloor()
    assert settled(least_cohort=2, most_norm=0.5).least_cohort == 2
    assert settled(most_coordinate=1.0) == PolicyFloor(2, 1.0, 0.5)
    said = "\n".join(screen.lines)
    assert "sums of at least 2, clipped to norm 0.5 and to changes of 1 at most" in said
    assert "in a sum of two, each learns the other's update" in said
    with pytest.raises(ConfigError, match="least_cohort: expected 2 to 255"):
        settled(least_cohort=256)
