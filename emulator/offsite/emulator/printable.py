"""Text of a peer on a terminal or in a log: nothing of it moves the cursor or starts a new line."""


def printable(text: str, keep: str = "") -> str:
    """The text with a space for every character that would not print as itself, but for `keep`."""
    return "".join(c if c.isprintable() or c in keep else " " for c in text)
