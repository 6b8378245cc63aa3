"""How commands end: exit codes by whose fault it is, results apart from everything else."""

import json
import os

import pytest
import typer

from offsite.emulator.terminal import Terminal, run
from offsite.secure.errors import (
    ConfigError,
    MachineError,
    OffsiteError,
    PeerError,
    PolicyError,
    TransportError,
)


def _app(error: BaseException | None) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ConfigError("x"), 3),
        (PeerError("x"), 4),
        (TransportError("x"), 5),
        (PolicyError("x"), 6),
        (MachineError("x"), 7),
        (OffsiteError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["work"])
    with pytest.raises(SystemExit) as ended:
        run(_app(error), "work")
    assert ended.value.code == code


def test_an_interrupt_promises_no_more_than_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which command goes on and which starts anew, the command itself says."""
    monkeypatch.setattr("sys.argv", ["work"])
    with pytest.raises(SystemExit):
        run(_app(KeyboardInterrupt()), "work")
    said = capsys.readouterr().err
    assert "interrupted; what was finished is kept" in said and "continue" not in said


def test_no_library_downloads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("sys.argv", ["work"])
    with pytest.raises(SystemExit):
        run(_app(None), "work")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_wrong_usage_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["work", "--wrong"])
    with pytest.raises(SystemExit) as ended:
        run(_app(None), "work")
    assert ended.value.code == 2


def test_what_a_peer_says_cannot_move_the_cursor_or_start_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()
    terminal.note("bob: \x1b[2J[/x] ok\nround 9 closed")
    terminal.result("two\nlines \x1b]0;title\x07", {})
    captured = capsys.readouterr()
    assert captured.err == "bob:  [2J[/x] ok round 9 closed\n"
    assert captured.out == "two\nlines  ]0;title \n"


def test_an_error_that_quotes_a_peer_is_printed_without_escapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["work"])
    with pytest.raises(SystemExit):
        run(_app(PeerError("\x1b[31mred")), "work")
    assert capsys.readouterr().err == "work:  [31mred\n"


def test_json_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(as_json=True)
    terminal.note("for the person")
    with terminal.progress("work") as report:
        report(1, 2)
        report(2, 2)
    terminal.result("text", {"answer": 42})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"answer": 42}
    assert "for the person" in captured.err and "work: 2 of 2" in captured.err
