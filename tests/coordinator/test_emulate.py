"""`coordinator emulate`: what is measured is what ships, and past the leak budget nothing does."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.coordinator.owner import SETTINGS, add_campaign, answerable, digests, run, sets
from tests.tiny import SENTENCES, save_llama, write_jsonl, write_text

from offsite.coordinator import releasing
from offsite.coordinator.building import Keep, build
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.measuring_inputs import MIN_ROWS, read_inputs
from offsite.coordinator.release import settings_unlike, stored_release
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.base_model import load_tokenizer
from offsite.emulator.bundle import writer
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.packing.packing import Packing
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_choices, summarise
from offsite.emulator.settings import load_settings
from offsite.secure.errors import ConfigError, PolicyError

VARIANT = '[{name = "small", method = "uniform_drop", ratio = 0.4}]'
LIMITS = ("zero_shot", "tuned", "healed", "kept", "verbatim")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owner")
    save_llama(folder / "mine", blocks=5)
    write_jsonl(folder / "gate.jsonl", answerable(folder / "mine", 40, start=7))
    write_jsonl(folder / "task.jsonl", answerable(folder / "mine", 12, start=100))
    write_text(folder / "public.jsonl", 64)
    flags = ("--model", folder / "mine", "--gate", folder / "gate.jsonl")
    flags += ("--calibration", folder / "public.jsonl", "--state", folder / "state")
    settings = SETTINGS | {"leak.task": str(folder / "task.jsonl")}
    assert run("init", *map(str, flags), *sets(settings)).exit_code == 0
    assert run("emulate", "--state", str(folder / "state")).exit_code == 0
    return folder


@pytest.fixture
def state(inputs: Path, tmp_path: Path) -> Path:
    shutil.copytree(inputs / "state", tmp_path / "state")
    return tmp_path / "state"


def report_of(state: Path, version: int) -> dict[str, object]:
    return json.loads((state / "reports" / f"{version}-leak.json").read_text())


def refused_of(state: Path, version: int, attempt: int = 1) -> dict[str, object]:
    path = state / "reports" / f"{version}-leak-refused-{attempt}.json"
    return json.loads(path.read_text())


def add_variants(state: Path, *tables: str) -> None:
    path = state / "coordinator.toml"
    text = path.read_text().replace("# [[emulator.variants]]", "\n".join(tables))
    path.write_text(text)


# ---- the report


def test_every_figure_is_measured_and_signed(state: Path) -> None:
    manifest = stated_manifest(state / "bundle")
    assert manifest is not None
    leak = manifest.facts.provenance["leak"]
    assert all(leak[name]["value"] is not None for name in LIMITS)
    assert leak["full_accuracy"]["acc"] == 1.0
    report = report_of(state, 1)
    assert report["emulators"]["main"]["leak"] == leak and report["refused"] is False
    shown = json.loads(run("status", "--json", "--state", str(state)).stdout)["release"]
    assert shown["leak_healed"] == leak["healed"]["value"]


@pytest.mark.parametrize("kind", ["whole_block", "lora"])
def test_what_was_measured_is_what_ships(state: Path, inputs: Path, kind: str) -> None:
    changes = {"emulator.packing": "nf4", "emulator.method": "width_prune", "adapter.kind": kind}
    flags = sets(changes)
    assert run("emulate", *flags, "--state", str(state)).exit_code == 0
    with open_workspace(state, exclusive=True) as workspace:
        bundle = stored_release(workspace)
        assert bundle.manifest.packing is Packing.NF4
        questions = [Question(q["query"], tuple(q["choices"]), q["gold"]) for q in _gate(inputs)]
        emulator = bundle.load_emulator(torch.float32)
        found = summarise(
            score_choices(
                emulator,  # type: ignore[arg-type]
                load_tokenizer(inputs / "mine"),
                questions,
                batch_tokens=workspace.config.gate.batch_tokens,
            )
        )
        fidelity = bundle.manifest.facts.provenance["fidelity"]
        parts = (bundle.schema.stored_emulator, bundle.schema.stored_adapter)
        stored = sum(spec.num_bytes for part in parts for spec in part.values())
    assert fidelity["emulator_accuracy"]["acc"] == round(found.acc, 4)
    assert fidelity["shipped_bytes"] == stored


def _gate(inputs: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (inputs / "gate.jsonl").read_text().splitlines()]


def test_what_was_not_measured_says_so(state: Path) -> None:
    flags = sets({"leak.task": "", "leak.heal_steps": "0"})
    shown = run("emulate", *flags, "--state", str(state))
    assert shown.stdout.count("not measured") >= 3
    leak = report_of(state, 2)["emulators"]["main"]["leak"]
    assert leak["healed"]["value"] is None and "not measured" in leak["healed"]["reason"]
    assert leak["tuned"]["value"] is None and leak["kept"]["value"] is None


# ---- the budget


def test_a_broken_budget_names_every_figure_writes_the_report_and_signs_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_campaign(state, CampaignState.RUNNING, closed=False)
    before = digests(state / "bundle")
    monkeypatch.setattr(writer, "sign", lambda *_: pytest.fail("something was signed"))
    flags = sets({f"leak.max_{name}": "0" for name in LIMITS})
    with pytest.raises(PolicyError) as caught:
        run("emulate", *flags, "--state", str(state))
    assert caught.value.exit_code == 6
    broken = refused_of(state, 2)["broken"]["main"]
    figures = refused_of(state, 2)["emulators"]["main"]["leak"]
    above = [name for name in LIMITS if figures[name]["value"] > 0]
    assert [line.partition(":")[0] for line in broken] == above and "verbatim" in above
    for name, line in zip(above, broken, strict=True):
        assert line in str(caught.value)
        assert f"{name}: expected at most 0, found {figures[name]['value']:.3f}" in line
    assert refused_of(state, 2)["refused"] is True
    assert digests(state / "bundle") == before and not (state / "bundle.partial").exists()
    with open_workspace(state, exclusive=True) as workspace:
        row = workspace.store.campaigns.current()
        assert row is not None and row.state is CampaignState.RUNNING
        assert workspace.store.messages.ids() == ["m1"]


def test_the_report_on_a_refused_release_stays(state: Path) -> None:
    for limit in ("0", "0.01"):
        with pytest.raises(PolicyError, match=r"2-leak-refused-\d\.json"):
            run("emulate", *sets({"leak.max_verbatim": limit}), "--state", str(state))
    assert run("emulate", "--state", str(state)).exit_code == 0
    budgets = [refused_of(state, 2, attempt)["leak_budget"] for attempt in (1, 2)]
    assert budgets == [{"verbatim": 0.0}, {"verbatim": 0.01}]
    assert report_of(state, 2)["refused"] is False


def test_a_budget_that_holds_lets_it_pass_and_is_signed_too(state: Path) -> None:
    flags = sets({"leak.max_healed": "5", "leak.max_verbatim": "1"})
    assert run("emulate", *flags, "--state", str(state)).exit_code == 0
    manifest = stated_manifest(state / "bundle")
    assert manifest is not None and manifest.facts.release_version == 2
    assert manifest.facts.provenance["leak_budget"] == {"healed": 5.0, "verbatim": 1.0}


@pytest.mark.parametrize("packing", ["none", "int8", "nf4"])
def test_a_middle_that_was_only_packed_is_verbatim(state: Path, packing: str) -> None:
    changes = {"emulator.ratio": "1", "emulator.packing": packing, "leak.max_verbatim": "0.99"}
    with pytest.raises(PolicyError, match=r"verbatim: expected at most 0\.99, found 1"):
        run("emulate", *sets(changes), "--state", str(state))
    assert refused_of(state, 2)["emulators"]["main"]["fidelity"]["verbatim"]["share_of_middle"] == 1


def test_packing_does_not_change_what_is_verbatim(state: Path) -> None:
    found = []
    for packing in ("none", "nf4"):
        changes = {"emulator.method": "width_prune", "emulator.packing": packing}
        assert run("emulate", *sets(changes), "--state", str(state)).exit_code == 0
        found.append(report_of(state, len(found) + 2)["emulators"]["main"]["leak"]["verbatim"])
    assert found[0] == found[1] and 0 < found[0]["value"] < 1


@pytest.mark.parametrize(("ratio", "is_said"), [("1", True), ("0.5", False)])
def test_whoever_removes_nothing_is_told(state: Path, ratio: str, is_said: bool) -> None:
    changes = {"emulator.ratio": ratio, "emulator.packing": "int8", "leak.heal_steps": "0"}
    shown = run("emulate", *sets(changes), "--state", str(state))
    assert ("warning: emulator main: nothing of the middle was removed" in shown.stderr) is is_said


@pytest.mark.parametrize("gate", ["", "there"])
def test_without_a_gate_it_is_said_that_nothing_is_measured(
    state: Path, inputs: Path, gate: str
) -> None:
    path = str(inputs / "gate.jsonl") if gate else ""
    changes = {"gate.questions": path, "leak.task": "", "leak.heal_steps": "0"}
    shown = run("emulate", *sets(changes), "--state", str(state))
    assert shown.exit_code == 0
    assert ("warning: gate.questions names no file" in shown.stderr) is not bool(gate)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        (
            "emulator.calibration",
            '{"text": "a star"}\nno json\n',
            r"other\.jsonl, line 2: expected JS",
        ),
        (
            "emulator.calibration",
            '{"text": "a star"}\n',
            r"other\.jsonl: expected at least \d+ tok",
        ),
        ("leak.text", '{"body": "a star"}\n', r"other\.jsonl, line 1: expected an object"),
        ("leak.task", "[1]\n", r"other\.jsonl: .*line 1"),
        ("gate.questions", "[1]\n", r"other\.jsonl: .*line 1"),
    ],
)
def test_files_are_read_before_the_model_is(
    state: Path, tmp_path: Path, key: str, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "offsite.coordinator.owners_model.load_base_model", lambda *_: pytest.fail("too late")
    )
    (tmp_path / "other.jsonl").write_text(text)
    for flags in ((), ("--auto",)):
        with pytest.raises(ConfigError, match=says):
            changes = sets({key: str(tmp_path / "other.jsonl")})
            run("emulate", *flags, *changes, "--state", str(state))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"leak.max_kept": "0.5", "leak.task": ""}, r"\[leak\] max_kept: .*leak\.task"),
        ({"leak.max_healed": "0.5", "leak.heal_steps": "0"}, r"\[leak\] max_healed"),
        ({"leak.max_zero_shot": "0.5", "gate.questions": ""}, r"gate\.questions"),
        ({"emulator.distil_steps": "1", "emulator.calibration": ""}, r"leak\.text"),
        ({"leak.task": "nowhere.jsonl"}, r"leak\.task: expected a file"),
        ({"emulator.method": "width_prune", "emulator.calibration": ""}, r"calibration"),
        ({"emulator.middle_lora": "true"}, r"emulator\.middle_lora"),
    ],
)
def test_what_cannot_be_judged_or_built_is_said_before_the_model_is_loaded(
    state: Path, changes: dict[str, str], says: str
) -> None:
    flags = sets({"model.path": "nowhere", **changes})
    with pytest.raises(ConfigError, match=says):
        run("emulate", *flags, "--state", str(state))


def test_an_adapter_that_cannot_travel_is_said_before_anything_is_measured_or_built(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.coordinator.publishing.ADAPTER_BYTES", 1000)
    for name in ("releasing.build", "measuring.measure_base"):
        monkeypatch.setattr(f"offsite.coordinator.{name}", lambda *_: pytest.fail("too late"))
    with pytest.raises(ConfigError, match="expected an adapter of at most"):
        run("emulate", "--state", str(state))


def test_the_stand_in_for_the_task_is_not_the_gate(state: Path, inputs: Path) -> None:
    flags = sets({"leak.task": str(inputs / "gate.jsonl")})
    with pytest.raises(ConfigError, match="other questions than the gate's"):
        run("emulate", *flags, "--state", str(state))


def test_an_interrupted_emulate_loses_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(state / "bundle")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("offsite.coordinator.measuring.measure_leak", interrupt)
    ended = run("emulate", "--state", str(state))
    assert ended.exit_code == 130
    assert "measured until now is lost, the next run starts anew" in ended.stderr
    assert digests(state / "bundle") == before


@pytest.mark.parametrize(
    ("asked", "share"), [("0.99", 1.0), ("0.7", 0.6667), ("0.5", 0.6667), ("0.3", 0.3333)]
)
def test_the_share_that_was_kept_is_signed_and_not_the_one_that_was_asked_for(
    state: Path, asked: str, share: float
) -> None:
    flags = sets({"emulator.ratio": asked, "leak.heal_steps": "0"})
    shown = run("emulate", *flags, "--state", str(state))
    with open_workspace(state, exclusive=True) as workspace:
        manifest = stored_release(workspace).manifest
        changed = ["emulator.ratio"] if asked != "0.5" else []
        assert settings_unlike(workspace.config, manifest) == changed
    with open_workspace(state, [f"emulator.ratio={asked}"], exclusive=True) as workspace:
        assert settings_unlike(workspace.config, manifest) == []
    assert manifest.facts.ratio == pytest.approx(share, abs=1e-4)
    assert manifest.facts.provenance["built"]["ratio"] == float(asked)
    assert ("this is the full model" in " ".join(shown.stdout.split())) is (share == 1.0)


# ---- variants and distillation


def test_variants_are_measured_shipped_and_known_to_the_settings(state: Path) -> None:
    small = '[[emulator.variants]]\nname = "small"\nmethod = "width_prune"\nratio = 0.3'
    add_variants(state, small + '\npacking = "nf4"')
    assert run("emulate", "--state", str(state)).exit_code == 0
    with open_workspace(state, exclusive=True) as workspace:
        bundle = stored_release(workspace)
        assert settings_unlike(workspace.config, bundle.manifest) == []
        key = workspace.keys.coordinator.public
        created = bundle.manifest.facts.created_unix_s
        variant = open_bundle(state / "bundle", key, created, emulator="small").manifest
    assert [entry.name for entry in bundle.manifest.variants] == ["small"]
    with open_workspace(state, ["emulator.variants=[]"], exclusive=True) as workspace:
        assert settings_unlike(workspace.config, bundle.manifest) == ["emulator.variants"]
    found = variant.facts.provenance
    assert found["built"]["method"] == "width_prune" and found["built"]["packing"] == "nf4"
    assert found["leak"] == report_of(state, 2)["emulators"]["small"]["leak"]
    assert (
        found["fidelity"]["shipped_bytes"]
        < (bundle.manifest.facts.provenance["fidelity"]["shipped_bytes"])
    )


def test_a_variant_that_breaks_the_budget_stops_the_release(state: Path) -> None:
    table = '[[emulator.variants]]\nname = "large"\nmethod = "uniform_drop"\nratio = 1.0'
    add_variants(state, table)
    before = digests(state / "bundle")
    with pytest.raises(
        PolicyError, match=r"variant large: verbatim: expected at most 0\.95, found 1"
    ):
        run("emulate", *sets({"leak.max_verbatim": "0.95"}), "--state", str(state))
    assert list(refused_of(state, 2)["broken"]) == ["large"]
    assert digests(state / "bundle") == before


def test_variants_that_cannot_be_built_are_named_before_anything_is_measured(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("releasing.build", "measuring.measure_base"):
        monkeypatch.setattr(f"offsite.coordinator.{name}", lambda *_: pytest.fail("too late"))
    table = '[[emulator.variants]]\nname = "{}"\nmethod = "{}"\nratio = 0.01'
    add_variants(state, table.format("a", "width_prune"), table.format("b", "activation_svd"))
    with pytest.raises(ConfigError) as caught:
        run("emulate", "--state", str(state))
    said = str(caught.value)
    assert said.startswith("variant a: width_prune cannot keep only 0.01 of the middle")
    assert "; variant b: activation_svd cannot keep only 0.01 of the middle" in said


def test_what_a_variant_finds_out_while_it_is_built_names_it_too(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(section: EmulatorSection, *_: object) -> object:
        raise ConfigError(f"{section.method.value} gives numbers that are not finite")

    add_variants(state, '[[emulator.variants]]\nname = "a"\nmethod = "width_prune"\nratio = 0.5')
    monkeypatch.setattr(releasing, "build", fails)
    with pytest.raises(ConfigError, match=r"^uniform_drop gives numbers"):
        run("emulate", "--state", str(state))

    def second_fails(section: EmulatorSection, *others: object) -> object:
        if section.variants:
            return build(section, *others)  # type: ignore[arg-type]
        return fails(section)

    monkeypatch.setattr(releasing, "build", second_fails)
    with pytest.raises(ConfigError, match=r"^variant a: width_prune gives numbers"):
        run("emulate", "--state", str(state))


def test_a_distilled_emulator_says_so(state: Path) -> None:
    flags = sets({"emulator.distil_steps": "2", "emulator.distil_tokens_per_step": "64"})
    assert run("emulate", *flags, "--state", str(state)).exit_code == 0
    with open_workspace(state, exclusive=True) as workspace:
        manifest = stored_release(workspace).manifest
        assert settings_unlike(workspace.config, manifest) == ["emulator.distil_steps"]
    assert manifest.facts.provenance["built"]["distil_steps"] == 2


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"leak.task": ""}, [Keep.NOTHING]),
        ({}, [Keep.EVERYTHING]),  # the plug-in is scored with it
        ({"leak.task": "", "emulator.distil_steps": "1"}, [Keep.EVERYTHING]),
        ({"leak.task": "", "emulator.variants": VARIANT}, [Keep.EVERYTHING, Keep.NOTHING]),
    ],
)
def test_the_full_model_is_given_up_where_nobody_needs_it_any_more(
    state: Path, changes: dict[str, str], kept: list[Keep], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Keep] = []

    def watched(*arguments: object) -> object:
        seen.append(arguments[-1])  # type: ignore[arg-type]
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(releasing, "build", watched)
    assert run("emulate", *sets(changes), "--state", str(state)).exit_code == 0
    assert seen == kept


# ---- inputs


def test_public_text_is_parted_and_no_row_is_in_both_parts(inputs: Path) -> None:
    overrides = [
        f"emulator.calibration={inputs / 'public.jsonl'}",
        "leak.heal_steps=2",
        "leak.heal_tokens_per_step=4096",
    ]
    config = load_settings(CoordinatorConfig, None, overrides)
    text = read_inputs(config, load_tokenizer(inputs / "mine"), "llama", 512).text
    held_out, learnt = torch.cat(text.held_out), torch.cat(text.learnt)
    assert held_out.shape[1] == learnt.shape[1]
    assert (
        len(held_out) + len(learnt) >= MIN_ROWS
        and len(held_out) == (len(held_out) + len(learnt)) // 4
    )
    narrow = [*overrides, "leak.heal_tokens_per_step=40"]
    config = load_settings(CoordinatorConfig, None, narrow)
    text = read_inputs(config, load_tokenizer(inputs / "mine"), "llama", 512).text
    assert text.learnt[0].shape[1] == 32
    short = inputs / "short.txt"
    for words, says in (("The sun is a star.", "tokens"), (SENTENCES[0] * 3, "at least two rows")):
        short.write_text(words)
        config = load_settings(CoordinatorConfig, None, [f"leak.text={short}"])
        with pytest.raises(ConfigError, match=says):
            read_inputs(config, load_tokenizer(inputs / "mine"), "llama", 512)


@pytest.mark.parametrize("text", ["", "public.jsonl", "link.jsonl"])
@pytest.mark.parametrize("calibration_tokens", [100, 16_384])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_what_is_held_out_was_never_calibrated_on(
    inputs: Path, text: str, calibration_tokens: int, model_type: str
) -> None:
    if not (inputs / "link.jsonl").exists():
        (inputs / "link.jsonl").symlink_to(inputs / "public.jsonl")
    overrides = [
        f"emulator.calibration={inputs / 'public.jsonl'}",
        f"emulator.calibration_tokens={calibration_tokens}",
        f"leak.text={inputs / text if text else ''}",
        "leak.text_tokens=300",
        "leak.heal_steps=1",
        "leak.heal_tokens_per_step=32",
    ]
    config = load_settings(CoordinatorConfig, None, overrides)
    tokenizer = load_tokenizer(inputs / "mine")
    tokenizer.bos_token = "<|system|>"  # of which rows of Gemma begin, and which is not in the text

    def text_of(batches: Sequence[torch.Tensor]) -> torch.Tensor:
        tokens = torch.cat([batch.flatten() for batch in batches])
        return tokens[tokens != tokenizer.bos_token_id]

    for positions in (*range(96, 128, 4), 512):  # rows of calibration are wider than the others
        found = read_inputs(config, tokenizer, model_type, positions)
        begins = {int(row[0]) for batch in found.text.learnt for row in batch}
        assert (begins == {tokenizer.bos_token_id}) is (model_type == "gemma2")
        calibrated, before_held_out = text_of(found.calibration), text_of(found.text.learnt)
        assert 0 < len(calibrated) <= min(calibration_tokens, len(before_held_out))
        assert torch.equal(calibrated, before_held_out[: len(calibrated)])


def test_another_text_leaves_calibration_whole(inputs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    shutil.copy(inputs / "public.jsonl", other)
    path = f"emulator.calibration={inputs / 'public.jsonl'}"
    calibrated = []
    for text in (other, inputs / "public.jsonl"):
        config = load_settings(CoordinatorConfig, None, [path, f"leak.text={text}"])
        found = read_inputs(config, load_tokenizer(inputs / "mine"), "llama", 512)
        calibrated.append(sum(batch.numel() for batch in found.calibration))
    assert calibrated[0] > calibrated[1]
