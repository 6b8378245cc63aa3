"""`coordinator simulate` on a state folder: what it shows and writes, and what it leaves alone."""

import json
from pathlib import Path

import pytest
from tests.coordinator.owner import SETTINGS, digests, run, sets, write_inputs
from tests.tiny import SENTENCES, write_jsonl
from typer.testing import Result

from offsite.coordinator.keys import load_keys
from offsite.coordinator.state import StateFolder
from offsite.secure.errors import ConfigError
from offsite.secure.identity import IdentityKey

LORA = {"adapter.kind": "lora", "tuning.dtype": "float32", "tuning.local_steps": "1"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model owner's folder with a release, and rows to divide beside it."""
    folder = tmp_path_factory.mktemp("owner")
    write_inputs(folder)
    write_jsonl(
        folder / "rows.jsonl",
        (
            {
                "prompt": f"Question {i}: say something.",
                "completion": SENTENCES[i % 5],
                "label": i % 5,
            }
            for i in range(300)
        ),
    )
    given = {
        "model": folder / "mine",
        "gate": folder / "questions.jsonl",
        "calibration": folder / "public.txt",
    }
    flags = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    made = folder / "state"
    assert run("init", *flags, "--state", str(made), *sets(SETTINGS | LORA)).exit_code == 0
    assert run("emulate", "--state", str(made)).exit_code == 0
    return made


def _simulate(state: Path, *words: str) -> Result:
    return run(
        "simulate", "--data", str(state.parent / "rows.jsonl"), "--state", str(state), *words
    )


def test_a_hundred_clients_are_simulated(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One-sided data, dropouts, stragglers, three strategies, secure sums; the state stays."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    before = digests(state)
    words = "--clients 100 --sample 8 --rounds 2 --partition dirichlet --alpha 0.3 --by label"
    words += " --dropout 0.1 --stragglers 0.1 --strategy fedavg,fedadam,fedyogi --stack 4 --seed 1"
    out, plot = tmp_path / "out", tmp_path / "plot.svg"
    shown = _simulate(state, *words.split(), "--out", str(out), "--plot", str(plot), "--json")
    document = json.loads(shown.stdout.splitlines()[-1])
    assert [one["strategy"] for one in document["strategies"]] == ["fedavg", "fedadam", "fedyogi"]
    assert all(one["rounds"] == 2 and not one["failed"] for one in document["strategies"])
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert lines == document["rounds"] and len(lines) == 6
    assert all(line["asked"] == 8 and line["answered"] >= 5 for line in lines)
    assert document["data"].startswith(
        "300 rows, Dirichlet 0.3 by the column label (5 groups): 3 to 3"
    )
    assert document["comparison"].startswith("best gate by strategy: ")
    assert all(name in plot.read_text() for name in ("fedavg", "fedadam", "fedyogi"))
    assert json.loads((out / "simulation.json").read_text())["rounds"] == lines
    assert digests(state) == before
    databases = sorted(path.parent.name for path in out.rglob("simulation.sqlite"))
    assert databases == ["fedadam", "fedavg", "fedyogi"]


def test_the_table_has_a_line_for_each_round_and_a_comparison_at_the_end(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    words = "--clients 6 --rounds 2 --sums visible --set campaign.min_replies=2"
    shown = _simulate(state, *words.split()).stdout
    assert shown.count("fedavg ") == 3 and "best gate by strategy: fedavg" in shown
    made = list((state / "simulations").iterdir())
    assert len(made) == 1 and (made[0] / "rounds.jsonl").is_file()


def test_nothing_of_a_simulation_is_signed_with_the_coordinators_key(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was signed in it, was signed with keys that are not in the state folder."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    with StateFolder.open(state, exclusive=False) as folder:
        keys = load_keys(folder)
    used: set[bytes] = set()
    plain = IdentityKey.sign

    def noted(self: IdentityKey, message: bytes) -> bytes:
        used.add(self.public.raw)
        return plain(self, message)

    monkeypatch.setattr(IdentityKey, "sign", noted)
    words = "--clients 6 --rounds 1 --sums secure --set campaign.min_replies=2"
    _simulate(state, *words.split(), "--out", str(tmp_path / "out"))
    assert len(used) == 8  # a coordinator, an authority, six clients
    assert not used & {keys.coordinator.public.raw, keys.authority.public.raw}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--clients 301", "--clients: expected 1 to 300"),
        ("--partition even", "--partition: expected one of iid, dirichlet, found 'even'"),
        ("--strategy fedavg,fedbest", "--strategy: expected one of .*, found 'fedbest'"),
        ("--stack many", "--stack: expected whole numbers, found 'many'"),
        ("--lora residual", "expected --sums visible"),
        ("--lora residual --sums visible", 'with "b", average is exact'),
        ("--strategy krum", "campaign.cohorts: expected at least 5 for strategy.name krum"),
        ("--clients 4", "min_replies: expected 2 to min_clients"),
        ("--set strategy.lora_aggregation=stack", "stack"),
        ("--by topic --partition dirichlet", "expected a column of rows.jsonl"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_is_tuned(
    state: Path, tmp_path: Path, words: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _simulate(state, "--out", str(tmp_path / "out"), *words.split())
    assert not (tmp_path / "out").exists()


def test_without_a_gate_there_is_nothing_to_compare(state: Path, tmp_path: Path) -> None:
    toml = state / "coordinator.toml"
    kept = toml.read_text()
    toml.write_text(
        "\n".join(line for line in kept.splitlines() if not line.startswith("questions ="))
    )
    try:
        with pytest.raises(ConfigError, match=r"set gate\.questions"):
            _simulate(state, "--out", str(tmp_path / "out"))
    finally:
        toml.write_text(kept)


def test_a_folder_that_holds_something_is_not_written_to(state: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigError, match="--out: expected a new or an empty folder"):
        _simulate(state, "--out", str(tmp_path))
