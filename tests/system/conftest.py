"""One tiny release for all system tests; each test works on its own copy of the state folder."""

import shutil
from pathlib import Path

import pytest
from tests.system.programs import Owner, free_address, run
from tests.tiny import save_llama, write_completions, write_questions, write_text


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, questions, data and a state folder that holds a release."""
    folder = tmp_path_factory.mktemp("system")
    save_llama(folder / "model", hidden=64, blocks=6, vocab=48_000)
    write_questions(folder / "gate.jsonl")
    write_text(folder / "public.jsonl")
    for index, name in enumerate(("a", "b")):
        write_completions(folder / f"{name}.jsonl", offset=3 * index)
    settings = {
        "model.path": folder / "model",
        "gate.questions": folder / "gate.jsonl",
        "gate.tolerance": 0.9,
        "emulator.calibration": folder / "public.jsonl",
        "emulator.calibration_tokens": 512,
        "leak.heal_steps": 2,
        "campaign.rounds": 2,
        "campaign.min_clients": 2,
        "campaign.min_replies": 2,
        "tuning.local_steps": 4,
        "tuning.learning_rate": 1e-3,
    }
    flags = [word for item in settings.items() for word in ("--set", f"{item[0]}={item[1]}")]
    for verb, extra in (("init", flags), ("emulate", [])):
        done = run("coordinator", verb, "--state", folder / "state", *extra)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def owner(released: Path, tmp_path: Path) -> Owner:
    """A model owner whose release is ready to be served."""
    shutil.copytree(released / "state", tmp_path / "owner")
    return Owner(tmp_path / "owner", free_address())
