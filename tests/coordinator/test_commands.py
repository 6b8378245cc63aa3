"""The owner's commands in one process: what they check first, and what a failure leaves behind."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.coordinator.owner import add_campaign, readme_command, run, write_inputs

from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.commands import init, serve
from offsite.coordinator.mailbox import Mailbox, Phase
from offsite.coordinator.publishing import check_travels
from offsite.coordinator.release import current_release, settings_unlike, stored_release
from offsite.coordinator.store import Store
from offsite.coordinator.tables.campaigns import CampaignRow, CampaignState
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import ConfigError, MachineError, TransportError
from offsite.secure.token import JoinToken

YEARS_S = 10 * 365 * 24 * 3600


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """`serve` sends the log to its terminal; the tests after these read it elsewhere."""
    logger = logging.getLogger("offsite")
    before = (logger.level, logger.handlers, logger.propagate)
    yield
    logger.level, logger.handlers, logger.propagate = before


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and texts, and a state folder made from them with the README's words."""
    folder = tmp_path_factory.mktemp("owner")
    write_inputs(folder)
    few = ("--set", "leak.heal_steps=2", "--set", "leak.heal_tokens_per_step=64")
    for verb, flags in (("init", few), ("emulate", ())):
        assert run(*readme_command(verb, folder, folder / "state"), *flags).exit_code == 0
    return folder


@pytest.fixture
def state(inputs: Path, tmp_path: Path) -> Path:
    """A copy for one test."""
    shutil.copytree(inputs / "state", tmp_path / "state")
    return tmp_path / "state"


def campaign_of(state: Path) -> CampaignRow:
    with Store(state / "coordinator.sqlite") as store:
        row = store.campaigns.current()
    assert row is not None
    return row


def messages_of(state: Path) -> list[str]:
    with Store(state / "coordinator.sqlite") as store:
        return store.messages.ids()


def version_of(state: Path) -> int:
    stated = stated_manifest(state / "bundle")
    assert stated is not None
    return stated.facts.release_version


# ---- init, invite


def test_the_readmes_words_lead_to_a_token_that_names_a_reachable_address(
    inputs: Path, state: Path
) -> None:
    done = run(*readme_command("invite", inputs, state))
    words = [word for word in done.stdout.split() if word.startswith("offsite1.")]
    assert JoinToken.parse(words[0]).address == "models.example.org:7443"


@pytest.mark.parametrize("listen", ["0.0.0.0:7443", "[::]:7443", "127.0.0.1:0"])
def test_no_token_names_an_address_that_cannot_be_dialled(
    inputs: Path, tmp_path: Path, listen: str
) -> None:
    model = ("--model", str(inputs / "mine"))
    made = run("init", *model, "--listen", listen, "--state", str(tmp_path / "state"))
    assert "before you invite: edges cannot dial" in made.stderr
    with pytest.raises(ConfigError, match=r"server\.advertise"):
        run("invite", "a", "--state", str(tmp_path / "state"))


@pytest.mark.parametrize("existed", [False, True])
def test_an_init_that_failed_can_be_run_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    root = tmp_path / "state"
    words = ("init", "--model", str(inputs / "mine"), "--state", str(root))
    if existed:
        root.mkdir()

    def fail(*_: object) -> None:
        raise MachineError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(init, "write_atomic", fail)
        with pytest.raises(MachineError):
            run(*words)
    assert root.exists() is existed and not (root / "keys").exists()
    assert run(*words).exit_code == 0


def test_an_init_without_its_inputs_makes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "state"
    with pytest.raises(ConfigError, match=r"model\.path.*--model.*gate\.questions"):
        run("init", "--model", "nowhere", "--gate", "nowhere.jsonl", "--state", str(root))
    assert not root.exists()


def test_no_invitation_is_made_when_its_token_cannot_be_written(state: Path) -> None:
    with pytest.raises(ConfigError, match="a folder that exists"):
        run("invite", "a", "--out", "nowhere/a.token", "--state", str(state))
    with Store(state / "coordinator.sqlite") as store:
        assert store.invites.all() == []


def test_a_second_init_leaves_the_first_alone(inputs: Path, state: Path) -> None:
    key = (state / "keys" / "authority.key").read_bytes()
    with pytest.raises(ConfigError, match="already holds a coordinator"):
        run("init", "--model", str(inputs / "mine"), "--state", str(state))
    assert (state / "keys" / "authority.key").read_bytes() == key


def test_a_token_in_a_file_is_not_printed_too(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.token"
    done = run("invite", "a", "--out", str(out), "--json", "--state", str(state))
    assert out.read_text().startswith("offsite1.") and "offsite1." not in done.output
    assert json.loads(done.stdout)["out"] == str(out)


# ---- emulate


def test_settings_that_differ_from_the_release_are_named(state: Path) -> None:
    with open_workspace(state, exclusive=True) as workspace:
        manifest = stored_release(workspace).manifest
        assert settings_unlike(workspace.config, manifest) == []
    changes = ["adapter.kind=lora", "emulator.top=1"]
    with open_workspace(state, changes, exclusive=True) as workspace:
        assert settings_unlike(workspace.config, manifest) == ["adapter.kind", "emulator.top"]


def test_a_missing_calibration_is_said_before_the_model_is_loaded(state: Path) -> None:
    for given in ("", "nowhere.txt"):
        with pytest.raises(ConfigError, match=r"emulator\.calibration"):
            run(
                *("emulate", "--set", f"emulator.calibration={given}"),
                *("--set", "model.path=nowhere", "--state", str(state)),
            )


def test_an_emulate_that_fails_gives_up_no_campaign(state: Path) -> None:
    add_campaign(state, CampaignState.RUNNING, closed=False)
    with pytest.raises(ConfigError):
        run("emulate", "--set", "model.path=nowhere", "--state", str(state))
    assert campaign_of(state).state is CampaignState.RUNNING
    assert (messages_of(state), version_of(state)) == (["m1"], 1)


def test_a_new_release_gives_up_a_campaign_without_rounds_and_its_messages(state: Path) -> None:
    add_campaign(state, CampaignState.RUNNING, closed=False)
    assert run("emulate", "--state", str(state)).exit_code == 0
    row = campaign_of(state)
    assert (row.state, row.reason) == (CampaignState.FAILED, "replaced by a new release")
    assert (messages_of(state), version_of(state)) == ([], 2)


@pytest.mark.parametrize(
    ("ended", "says"),
    [
        (CampaignState.ENDED, "coordinator export"),
        (CampaignState.RUNNING, "under way"),
        (CampaignState.FAILED, "under way"),
    ],
)
def test_a_result_is_not_made_unreachable_unless_asked_to(
    state: Path, ended: CampaignState, says: str
) -> None:
    add_campaign(state, ended, closed=True)
    with pytest.raises(ConfigError, match=f"{says}.*--replace"):
        run("emulate", "--state", str(state))
    assert (campaign_of(state).state, version_of(state)) == (ended, 1)
    for number in (2, 3):  # what was given up once is not asked about again
        flags = ["--replace"] if number == 2 else []
        assert run("emulate", *flags, "--state", str(state)).exit_code == 0
        assert version_of(state) == number


def test_a_campaign_that_ended_without_a_result_is_replaced_at_once(state: Path) -> None:
    add_campaign(state, CampaignState.ENDED, closed=True, acc=0.1)
    assert run("emulate", "--state", str(state)).exit_code == 0


def test_an_adapter_that_no_message_can_carry_is_refused() -> None:
    check_travels({"top.0.w": TensorSpec("F32", (2**28,))})
    with pytest.raises(ConfigError, match=r"found 2\.00 GiB.*fewer slots.*lora"):
        check_travels({"top.0.w": TensorSpec("F32", (2**29,))})


def test_a_release_says_how_it_was_built_and_what_was_measured(state: Path) -> None:
    stated = stated_manifest(state / "bundle")
    assert stated is not None
    found = stated.facts.provenance
    assert set(found) == {"built", "fidelity", "leak", "leak_budget"}
    assert 0 < found["fidelity"]["share_of_parameters"] < 1
    assert found["built"]["method"] == "width_prune" and found["leak_budget"] == {}
    report = json.loads((state / "reports" / "1-leak.json").read_text())
    assert report["emulators"] == {"main": {k: found[k] for k in ("built", "fidelity", "leak")}}
    assert report["refused"] is False


# ---- expiry


def test_an_expired_release_is_served_to_nobody_and_still_its_owners(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_campaign(state, CampaignState.ENDED, closed=True)
    with open_workspace(state, exclusive=True) as workspace:
        late = current_release(workspace).manifest.facts.expires_unix_s + YEARS_S
        monkeypatch.setattr("offsite.coordinator.release.time", SimpleNamespace(time=lambda: late))
        with pytest.raises(ConfigError, match="the release has expired; run `coordinator emulate`"):
            current_release(workspace)
        assert stored_release(workspace).manifest.facts.release_version == 1
    done = run("evaluate", "--json", "--state", str(state))
    assert json.loads(done.stdout)["questions_are_gate"] is True


def test_other_questions_are_not_called_the_gate(state: Path, inputs: Path, tmp_path: Path) -> None:
    add_campaign(state, CampaignState.ENDED, closed=True)
    other = tmp_path / "other.jsonl"
    shutil.copy(inputs / "questions.jsonl", other)
    done = run("evaluate", "--questions", str(other), "--json", "--state", str(state))
    assert json.loads(done.stdout)["questions_are_gate"] is False


@pytest.mark.parametrize("words", [("evaluate", "--limit", "-1"), ("export", "--rank", "0")])
def test_a_number_out_of_range_is_wrong_usage(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


# ---- serve


def test_a_campaign_that_failed_is_announced_and_reported(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Phase] = []

    def fail(campaign: Campaign) -> None:
        campaign.announce(Phase.FAILED, "too few")
        raise TransportError("round 1: too few in 3 attempts")

    def farewell(workspace: object, mailbox: Mailbox, started_unix_s: float) -> None:
        told.append(mailbox.status.phase)

    monkeypatch.setattr(serve, "run_campaign", fail)
    monkeypatch.setattr(serve, "_say_farewell", farewell)
    with pytest.raises(TransportError, match="too few"):
        run("serve", "--set", "server.listen=127.0.0.1:0", "--state", str(state))
    report = json.loads((state / "reports" / "campaign-1.json").read_text())
    assert told == [Phase.FAILED]
    assert report["failure"] == "round 1: too few in 3 attempts" and report["released"] is False


def test_what_fails_is_one_line_on_the_terminal_and_a_traceback_in_the_owners_log(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(campaign: Campaign) -> None:
        try:
            raise ValueError("the cause")
        except ValueError:
            logging.getLogger("offsite.test").exception("a call\nfailed")
        raise KeyError("the end")

    monkeypatch.setattr(serve, "run_campaign", fail)
    log = state / "serve.log"
    log.touch(0o644)
    shown: list[str] = []
    monkeypatch.setattr(serve.Terminal, "note", lambda self, text: shown.append(text))
    with pytest.raises(KeyError, match="the end"):
        run("serve", "--set", "server.listen=127.0.0.1:0", "--state", str(state))
    assert f"a call\nfailed; {log} says why" in shown  # `note` itself makes it one line
    assert not any("Traceback" in text or "the cause" in text for text in shown)
    text = log.read_text()
    assert "ERROR offsite.test a call failed\n" in text
    assert "ValueError: the cause" in text and "KeyError: 'the end'" in text
    assert text.count("Traceback") == 2
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_full_log_makes_room_for_the_next(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(campaign: Campaign) -> None:
        for number in range(100):
            logging.getLogger("offsite.test").info("line %d", number)
        raise TransportError("over")

    monkeypatch.setattr(serve, "run_campaign", fail)
    monkeypatch.setattr(serve, "LOG_BYTES", 1000)
    with pytest.raises(TransportError):
        run("serve", "--set", "server.listen=127.0.0.1:0", "--state", str(state))
    logs = sorted(state.glob("serve.log*"))
    assert [path.name for path in logs] == ["serve.log", "serve.log.1"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs)
    assert logs[1].stat().st_size <= 1000


def test_a_run_that_was_stopped_by_the_machine_says_no_farewell(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(campaign: Campaign) -> None:
        raise MachineError("no room")

    monkeypatch.setattr(serve, "run_campaign", fail)
    monkeypatch.setattr(serve, "_say_farewell", lambda *_: pytest.fail("it is not the end"))
    with pytest.raises(MachineError):
        run("serve", "--set", "server.listen=127.0.0.1:0", "--state", str(state))
    assert [path.name for path in (state / "reports").iterdir()] == ["1-leak.json"]
