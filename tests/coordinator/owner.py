"""A model owner's state folder with a tiny release, and a campaign with one closed round."""

import hashlib
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.tiny import SENTENCES, save_llama, write_questions, write_text
from torch import Tensor
from typer.testing import CliRunner, Result

from offsite.coordinator.cli import app
from offsite.coordinator.release import stored_release
from offsite.coordinator.round_metrics import BASELINE, GATE
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.tables.clients import CertificateRef
from offsite.coordinator.tables.messages import MessageRow
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.coordinator.workspace_campaign import record_of
from offsite.emulator.base_model import load_base_model, load_tokenizer
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_choices

WORDS = ("a star", "a stone", "a plant", "a wave", "iron", "ice", "the sun", "heat")
SETTINGS = {
    "emulator.method": "uniform_drop",
    "emulator.ratio": "0.5",
    "emulator.bottom": "1",
    "emulator.top": "1",
    "leak.heal_steps": "2",
    "leak.heal_tokens_per_step": "64",
    "leak.tune_steps": "2",
    "tuning.batch_examples": "4",
    "adapter.rank": "2",
    "model.dtype": "float32",
}
"""Of an owner who measures little; a task is to be named."""

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


def sets(settings: Mapping[str, str]) -> list[str]:
    """The flags that override settings."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def answerable(folder: Path, count: int, start: int = 0) -> list[dict[str, object]]:
    """Questions of which the model gives every answer, so that it has a skill to share."""
    model, tokenizer = load_base_model(folder), load_tokenizer(folder)
    asked = [
        Question(
            f"{SENTENCES[i % 5]} Question {i}: what is it? Answer:", (WORDS[i % 8], WORDS[i % 7]), 0
        )
        for i in range(start, start + count)
        if i % 8 != i % 7
    ]
    scores = score_choices(model, tokenizer, asked, batch_tokens=512)
    return [
        {
            "query": question.query,
            "choices": list(question.choices),
            "gold": max((0, 1), key=found.log_likelihoods.__getitem__),
        }
        for question, found in zip(asked, scores, strict=True)
    ]


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def as_it_was(name: str, value: Tensor) -> Tensor:
    return value


def add_campaign(
    state: Path,
    campaign: CampaignState,
    *,
    closed: bool,
    acc: float = 0.6,
    change: Callable[[str, Tensor], Tensor] = as_it_was,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """A campaign of the present release, with an instruction that nobody answered.

    `change` makes the adapter of its closed round, `metrics` are those of that round.
    """
    judged = {GATE: acc, BASELINE: 0.5} if metrics is None else metrics
    with open_workspace(state, exclusive=True) as workspace:
        record = record_of(workspace, stored_release(workspace))
        row = record.open(time.time())
        opened = record.store.open_round(row.campaign_id, 1, time.time())
        if closed:
            made = {name: change(name, value) for name, value in record.untouched().items()}
            file = record.files.write("campaign-1-round-1", made)
            record.store.close_round(opened, file, None, judged, time.time())
        _add_message(workspace, row.campaign_id)
        record.store.set_state(row.campaign_id, campaign, time.time())


def _add_message(workspace: Workspace, run_id: int) -> None:
    now = time.time()
    workspace.store.clients.add("a", b"a" * 32, CertificateRef(b"f" * 32, now + 60), now)
    workspace.store.messages.add(
        [MessageRow("m1", run_id, "1.1", "a", 10, b"d" * 32, now, now + 60)]
    )
