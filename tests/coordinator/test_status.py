"""What a client says of itself, on the owner's terminal."""

from rich.console import Console

from offsite.coordinator.commands.status import render


def test_what_a_client_says_is_neither_markup_nor_an_escape() -> None:
    document = {
        "campaign": {"number": 1, "state": "failed", "reason": "bob: [/x]\x1b[2J"},
        "clients": [{"name": "bob", "doing": "[/x] [red]tuning\x1b]0;title\x07"}],
        "rounds": [],
    }
    console = Console(width=200, force_terminal=True)
    with console.capture() as capture:
        console.print(render(document))
    text = capture.get()
    assert "[/x] [red]tuning" in text and "bob: [/x]" in text
    assert "\x1b[2J" not in text and "\x1b]" not in text and "\x07" not in text
