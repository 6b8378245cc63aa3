"""The leak report of a tiny model that knows something, and the budget that limits it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.emulator.exams import Setting, make_setting

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.build import Emulator
from offsite.emulator.fidelity import BaseFacts, Fidelity, measure_base, measure_fidelity
from offsite.emulator.figures import Figure
from offsite.emulator.leak.budget import LeakBudget
from offsite.emulator.leak.heal import HealRecipe
from offsite.emulator.leak.report import HealAttack, LeakReport, TunedAdapter, measure_leak
from offsite.emulator.leak.task_tuning import TaskRecipe, tune_on_task
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report, silent
from offsite.emulator.scoring import score_choices
from offsite.emulator.training.tokens import Encoding, question_examples
from offsite.secure.errors import ConfigError

TOKENS = 512
HEAL = HealRecipe(steps=30, tokens_per_step=96, rank=8, learning_rate=1e-2)
TASK = TaskRecipe(steps=30, learning_rate=5e-3, batch_examples=8)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder: Path = tmp_path_factory.mktemp("setting")
    return make_setting(folder)


@pytest.fixture(scope="module")
def facts(setting: Setting) -> BaseFacts:
    return measure_base(setting.base, setting.text, setting.questions, setting.tokenizer, TOKENS)


@pytest.fixture
def emulator(setting: Setting) -> Emulator:
    return setting.emulator(0.5, MethodName.UNIFORM_DROP)


def fidelity_of(setting: Setting, facts: BaseFacts, emulator: Emulator) -> Fidelity:
    text, questions = setting.text, setting.questions
    return measure_fidelity(facts, emulator, text, questions, setting.tokenizer, TOKENS)


def tuned_adapter(setting: Setting, emulator: Emulator, kind: AdapterKind) -> TunedAdapter:
    adapter = make_adapter(AdapterSpec(kind, 4, 8), emulator.layer_map)
    examples = question_examples(setting.questions[::2], setting.tokenizer, Encoding(64))
    tuning = tune_on_task(emulator.model, adapter, examples, TASK)
    with plugged_in(setting.base, adapter, tuning.tensors):
        plug_in = score_choices(
            setting.base, setting.tokenizer, setting.questions, batch_tokens=TOKENS
        )
    return TunedAdapter(adapter, TASK, tuning, tuple(plug_in))


def copied(emulator: Emulator) -> Mapping[str, torch.Tensor]:
    return {name: value.clone() for name, value in emulator.model.state_dict().items()}


def report_of(
    setting: Setting,
    facts: BaseFacts,
    emulator: Emulator,
    *,
    heal: HealAttack | None = None,
    tuned: TunedAdapter | None = None,
) -> LeakReport:
    fidelity = fidelity_of(setting, facts, emulator)
    questions, tokenizer, text = setting.questions, setting.tokenizer, setting.text
    return measure_leak(
        facts, fidelity, emulator, questions, tokenizer, TOKENS, text=text, heal=heal, tuned=tuned
    )


@pytest.mark.parametrize("kind", list(AdapterKind), ids=lambda kind: kind.value)
def test_all_figures_are_what_their_accuracies_say(
    setting: Setting, facts: BaseFacts, emulator: Emulator, kind: AdapterKind
) -> None:
    before = copied(emulator)
    tuned = tuned_adapter(setting, emulator, kind)
    attack = HealAttack(HEAL, setting.text)
    report = report_of(setting, facts, emulator, heal=attack, tuned=tuned)
    after = emulator.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.chance == pytest.approx(0.2)
    assert report.full and report.emulator and report.tuned_emulator and report.plug_in
    assert report.healed_model and report.healed_model.accuracy
    full = report.full.acc - 0.2
    assert report.zero_shot.value == pytest.approx((report.emulator.acc - 0.2) / full)
    assert report.tuned.value == pytest.approx((report.tuned_emulator.acc - 0.2) / full)
    assert report.healed.value == pytest.approx((report.healed_model.accuracy.acc - 0.2) / full)
    assert report.kept.value == pytest.approx(
        (report.tuned_emulator.acc - 0.2) / (report.plug_in.acc - 0.2)
    )
    assert report.zero_shot.value is not None and report.zero_shot.value < 1
    assert report.tuned_emulator.acc > report.emulator.acc
    assert report.healed_model.before and report.healed_model.after
    assert report.healed_model.after.nats < report.healed_model.before.nats
    document = report.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    for name in ("zero_shot", "tuned", "healed", "kept", "verbatim"):
        assert name in document
    assert isinstance(document["healing"], dict)
    assert document["healing"]["tokens"] == 30 * 4 * 23
    assert report.full.questions == len(setting.questions)


def test_the_perplexity_before_healing_is_the_one_that_is_known(
    setting: Setting, facts: BaseFacts, emulator: Emulator
) -> None:
    fidelity, done = fidelity_of(setting, facts, emulator), list[str]()

    @contextmanager
    def progress(text: str) -> Iterator[Report]:
        done.append(text)
        yield silent

    attack = HealAttack(replace(HEAL, steps=1), setting.text)
    report = measure_leak(
        facts, fidelity, emulator, (), setting.tokenizer, TOKENS,
        text=setting.text, heal=attack, progress=progress,
    )  # fmt: skip
    assert report.healed_model is not None
    assert report.healed_model.before == fidelity.perplexity
    assert [text for text in done if "perplexity" in text] == ["perplexity of the healed emulator"]


def test_what_was_not_measured_says_so(
    setting: Setting, facts: BaseFacts, emulator: Emulator
) -> None:
    report = report_of(setting, facts, emulator)
    assert report.zero_shot.value is not None
    for figure in (report.tuned, report.healed, report.kept):
        assert figure.value is None
        assert figure.reason.startswith("not measured: ")
    bare = measure_base(setting.base, (), (), setting.tokenizer, TOKENS)
    fidelity = measure_fidelity(bare, emulator, (), (), setting.tokenizer, TOKENS)
    nothing = measure_leak(bare, fidelity, emulator, (), setting.tokenizer, TOKENS)
    assert nothing.zero_shot.value is None
    assert nothing.verbatim.value is not None


def test_an_ignorant_full_model_gives_no_figure(tmp_path: Path) -> None:
    setting = make_setting(tmp_path, trained=False)
    facts = measure_base(setting.base, (), setting.questions, setting.tokenizer, TOKENS)
    emulator = setting.emulator(0.5, MethodName.UNIFORM_DROP)
    fidelity = measure_fidelity(facts, emulator, (), setting.questions, setting.tokenizer, TOKENS)
    report = measure_leak(facts, fidelity, emulator, setting.questions, setting.tokenizer, TOKENS)
    assert report.zero_shot.value is None
    assert "the full model is not above chance" in report.zero_shot.reason
    (line,) = LeakBudget(zero_shot=0.5).broken_by(report)
    begins = "zero_shot: expected at most 0.5, cannot be judged: the full model is not above chance"
    assert line.startswith(begins)


def test_tuning_learns_the_task_and_leaves_the_model(setting: Setting, emulator: Emulator) -> None:
    before = copied(emulator)
    tuned = tuned_adapter(setting, emulator, AdapterKind.LORA)
    assert tuned.tuning.last_loss < tuned.tuning.first_loss
    assert any(bool(value.any()) for n, value in tuned.tuning.tensors.items() if "lora_B" in n)
    after = emulator.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match="at least one example"):
        tune_on_task(emulator.model, tuned.adapter, (), TASK)


# The budget.


@pytest.fixture(scope="module")
def report(setting: Setting, facts: BaseFacts) -> LeakReport:
    emulator = setting.emulator(0.5, MethodName.UNIFORM_DROP)
    measured = report_of(setting, facts, emulator)
    return replace(
        measured,
        zero_shot=Figure(0.4, 0.03),
        tuned=Figure(0.6, 0.03),
        healed=Figure(0.8, 0.03),
        kept=Figure(0.7, 0.03),
        verbatim=Figure(0.3),
    )


def test_what_stays_within_its_limits_breaks_nothing(report: LeakReport) -> None:
    assert LeakBudget().broken_by(report) == ()
    exact = LeakBudget(zero_shot=0.4, tuned=0.6, healed=0.8, kept=0.7, verbatim=0.3)
    assert exact.broken_by(report) == ()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("zero_shot", "zero_shot: expected at most 0.1, found 0.400 ± 0.030"),
        ("tuned", "tuned: expected at most 0.1, found 0.600 ± 0.030"),
        ("healed", "healed: expected at most 0.1, found 0.800 ± 0.030"),
        ("kept", "kept: expected at most 0.1, found 0.700 ± 0.030"),
        ("verbatim", "verbatim: expected at most 0.1, found 0.300"),
    ],
)
def test_a_figure_beyond_its_limit_is_named(report: LeakReport, name: str, line: str) -> None:
    assert LeakBudget(**{name: 0.1}).broken_by(report) == (line,)


def test_all_broken_limits_are_named(report: LeakReport) -> None:
    found = LeakBudget(zero_shot=0.5, healed=0.5, verbatim=0.0).broken_by(report)
    assert [line.partition(":")[0] for line in found] == ["healed", "verbatim"]


def test_a_limit_on_what_was_not_measured_is_broken(report: LeakReport) -> None:
    unknown = replace(report, healed=Figure(None, None, "not measured: no healing"))
    (line,) = LeakBudget(healed=0.9).broken_by(unknown)
    assert line == "healed: expected at most 0.9, cannot be judged: no healing"


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_a_limit_that_cannot_be_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="a share of 0 or more"):
        LeakBudget(healed=limit)
