"""`--help` answers for every command, names its exit codes, and imports nothing heavy."""

import re
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from offsite.coordinator.cli import app as coordinator
from offsite.edge_client.cli import app as edge_client

APPS = {"coordinator": coordinator, "edge-client": edge_client}
COMMANDS = [
    (name, verb)
    for name, app in APPS.items()
    for verb in typer.main.get_group(app).list_commands(None)  # type: ignore[arg-type]
]
HEAVY = ("torch", "transformers", "triton", "flwr", "peft", "grpc")


@pytest.mark.parametrize(("name", "verb"), COMMANDS)
def test_every_command_explains_itself(name: str, verb: str) -> None:
    shown = CliRunner().invoke(APPS[name], [verb, "--help"])
    assert shown.exit_code == 0
    assert "Exit codes" in shown.output and "--state" in shown.output


@pytest.mark.parametrize(("name", "verb"), COMMANDS)
def test_no_word_of_a_help_text_is_taken_for_markup(name: str, verb: str) -> None:
    command = typer.main.get_group(APPS[name]).commands[verb]
    shown = "".join(CliRunner().invoke(APPS[name], [verb, "--help"]).output.split())
    shown = re.sub("[│─╭╮╰╯]", "", shown)
    texts = [command.help, *(getattr(option, "help", None) for option in command.params)]
    for text in filter(None, texts):
        for word in text.split():
            assert word in shown, f"{word} of: {text}"


@pytest.mark.parametrize("module", ["offsite.coordinator.cli", "offsite.edge_client.cli"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
