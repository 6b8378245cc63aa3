"""A model owner's state folder with a tiny release, and a campaign with one closed round."""

import shlex
import time
from pathlib import Path

from tests.tiny import save_llama, write_questions, write_text
from typer.testing import CliRunner, Result

from offsite.coordinator.campaign_record import BASELINE, GATE
from offsite.coordinator.cli import app
from offsite.coordinator.release import stored_release
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.tables.clients import CertificateRef
from offsite.coordinator.tables.messages import MessageRow
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.coordinator.workspace_campaign import record_of

README = Path(__file__).parents[2] / "README.md"


def write_inputs(folder: Path) -> None:
    """Model, gate questions and public text under the names that the README uses."""
    save_llama(folder / "mine", blocks=5)
    write_questions(folder / "questions.jsonl", 4)
    write_text(folder / "public.jsonl").rename(folder / "public.txt")


def readme_command(verb: str, inputs: Path, state: Path) -> list[str]:
    """The arguments of a command as the README types it, on these inputs."""
    text = README.read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith(f"coordinator {verb} "))
    line = line.replace("/models/", f"{inputs}/")
    for name in ("questions.jsonl", "public.txt"):
        line = line.replace(f" {name}", f" {inputs / name}")
    return [*shlex.split(line, comments=True)[1:], "--state", str(state)]


def run(*arguments: str) -> Result:
    """A command in this process; what it raises, the caller sees."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def add_campaign(state: Path, campaign: CampaignState, *, closed: bool, acc: float = 0.6) -> None:
    """A campaign of the present release, with an instruction that nobody answered."""
    with open_workspace(state, exclusive=True) as workspace:
        record = record_of(workspace, stored_release(workspace))
        row = record.open(time.time())
        opened = record.store.open_round(row.campaign_id, 1, time.time())
        if closed:
            file = record.files.write("campaign-1-round-1", record.untouched())
            record.store.close_round(opened, file, None, {GATE: acc, BASELINE: 0.5}, time.time())
        _add_message(workspace, row.campaign_id)
        record.store.set_state(row.campaign_id, campaign, time.time())


def _add_message(workspace: Workspace, run_id: int) -> None:
    now = time.time()
    workspace.store.clients.add("a", b"a" * 32, CertificateRef(b"f" * 32, now + 60), now)
    workspace.store.messages.add(
        [MessageRow("m1", run_id, "1.1", "a", 10, b"d" * 32, now, now + 60)]
    )
