"""The training loop on tiny models: what it computes, how it stops, and how it resumes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.emulator.training.samples import make_examples, make_model
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client import tuning
from offsite.edge_client.checkpoint import Binding, Checkpoint
from offsite.edge_client.outcome import TuningOutcome
from offsite.edge_client.task import Task, learning_rate
from offsite.edge_client.tuning import NO_CHECKPOINT, Callbacks, tune
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import summed_loss
from offsite.secure.errors import ConfigError, DiskFullError, MachineError

SETTINGS = TuningSettings(
    learning_rate=1e-2,
    local_steps=6,
    batch_examples=8,
    micro_batch_tokens=60,
    validation_share=0.1,
    dtype=ComputeDtype.FLOAT32,
)
EXAMPLES = make_examples(40)
FAMILIES = ["llama", "gpt2"]
Parameters = dict[str, nn.Parameter]


def last_block(model: PreTrainedModel) -> Parameters:
    """Make the last block the only one that trains; return its parameters."""
    model.requires_grad_(False)
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    parameters = {f"top.0.{name}": value for name, value in blocks[-1].named_parameters()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def values_of(parameters: Parameters) -> dict[str, torch.Tensor]:
    return {name: value.detach().float().clone() for name, value in parameters.items()}


def run(
    family: str = "llama",
    settings: TuningSettings = SETTINGS,
    *,
    dtype: torch.dtype = torch.float32,
    checkpoint: Checkpoint | None = None,
    callbacks: Callbacks | None = None,
) -> TuningOutcome:
    model = make_model(family).to(dtype)
    parameters = last_block(model)
    base = values_of(parameters)
    task = Task(settings, round=2, total_rounds=3, seed=11)
    return tune(model, parameters, base, EXAMPLES, task, checkpoint=checkpoint, callbacks=callbacks)


def assert_equal(a: TuningOutcome, b: TuningOutcome) -> None:
    """The same, bit for bit, but for the time it took."""
    assert a.delta.keys() == b.delta.keys()
    for name, change in a.delta.items():
        assert torch.equal(change, b.delta[name]), name
    assert replace(a.metrics, seconds=0.0) == replace(b.metrics, seconds=0.0)


# The loss.


def gradients(micro_batch_tokens: int) -> list[torch.Tensor]:
    model = make_model("llama").double()
    parameters = last_block(model)
    batches = micro_batches(EXAMPLES[:16], micro_batch_tokens)
    learnt = sum(len(batch.targets) for batch in batches)
    for batch in batches:
        (summed_loss(model, batch) / learnt).backward()
    return [value.grad for value in parameters.values() if value.grad is not None]


def test_the_step_does_not_depend_on_the_split_into_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # see beyond fp32's rounding
    one, few, each = gradients(10**6), gradients(60), gradients(1)
    assert len(micro_batches(EXAMPLES[:16], 1)) == 16
    for a, b, c in zip(one, few, each, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


def test_a_run_does_not_depend_on_the_split_into_micro_batches() -> None:
    together = run(settings=replace(SETTINGS, micro_batch_tokens=10**6))
    apart = run(settings=replace(SETTINGS, micro_batch_tokens=1))
    for name, change in together.delta.items():
        torch.testing.assert_close(change, apart.delta[name], rtol=1e-2, atol=1e-4)
    assert together.metrics.learnt_tokens == apart.metrics.learnt_tokens


# What a run does.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns(family: str, dtype: torch.dtype) -> None:
    settings = replace(SETTINGS, local_steps=20)
    progress: list[tuple[int, int]] = []
    callbacks = Callbacks(progress=lambda done, total: progress.append((done, total)))
    metrics = run(family, settings, dtype=dtype, callbacks=callbacks).metrics
    assert metrics.last_loss < metrics.first_loss - 0.3
    assert metrics.validation_before is not None and metrics.validation_after is not None
    assert metrics.validation_after < metrics.validation_before - 0.3
    assert (metrics.steps, metrics.examples, metrics.examples_seen) == (20, 36, 160)
    assert progress == [(step, 20) for step in range(1, 21)]
    assert all(math.isfinite(value) for value in (metrics.first_loss, metrics.last_loss))


def test_only_the_adapter_changes_and_the_model_holds_it_afterwards() -> None:
    model = make_model("gpt2")
    parameters = last_block(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = values_of(parameters)
    delta = tune(model, parameters, base, EXAMPLES, Task(SETTINGS)).delta
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {f"transformer.h.1.{name.removeprefix('top.0.')}" for name in parameters}
    for name, parameter in parameters.items():
        torch.testing.assert_close(base[name] + delta[name], parameter.detach())
        assert parameter.grad is None
    assert not model.training


def test_bf16_weights_keep_steps_that_are_too_small_for_them() -> None:
    settings = replace(SETTINGS, learning_rate=1e-6, warmup_share=0.0)
    for change in run("llama", settings, dtype=torch.bfloat16).delta.values():
        assert change.dtype is torch.float32
        assert 0 < float(change.abs().max()) < 1e-5


def test_gradients_of_bf16_weights_are_summed_in_fp32() -> None:
    """As if there were no micro-batches: in bf16 the sum of 40 would lose its low bits."""
    settings = replace(SETTINGS, local_steps=1, batch_examples=36, grad_clip=0.0)
    model = make_model("llama").bfloat16()
    parameters = last_block(model)
    seen: dict[str, torch.Tensor] = {}
    step = tuning.Masters.step

    def spy(masters: tuning.Masters, rate: float) -> None:
        seen.update({name: master.grad.clone() for name, master in masters.values.items()})
        step(masters, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Masters, "step", spy)
        task = Task(replace(settings, micro_batch_tokens=1))
        tune(model, parameters, values_of(parameters), EXAMPLES, task)
    assert all(gradient.dtype is torch.float32 for gradient in seen.values())
    assert any(not gradient.equal(gradient.bfloat16().float()) for gradient in seen.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing(family: str, dtype: torch.dtype) -> None:
    settings = replace(SETTINGS, gradient_checkpointing=True)
    assert_equal(run(family, settings, dtype=dtype), run(family, dtype=dtype))


def test_gradients_are_clipped() -> None:
    settings = replace(SETTINGS, local_steps=1, weight_decay=0.0)
    norms = []
    for clip in (0.0, 1e-3):
        model = make_model("llama")
        parameters = last_block(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tuning.Masters, "step", _note_norm(norms))
            with pytest.raises(ConfigError, match="tuning changed nothing"):
                task = Task(replace(settings, grad_clip=clip))
                tune(model, parameters, values_of(parameters), EXAMPLES, task)
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def _note_norm(norms: list[float]) -> Callable[[tuning.Masters, float], None]:
    def note(masters: tuning.Masters, rate: float) -> None:
        gradients = [master.grad for master in masters.values.values() if master.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    return note


def test_the_rate_warms_up_and_follows_a_cosine_over_the_campaign() -> None:
    settings = replace(SETTINGS, learning_rate=1.0, warmup_share=0.1)
    tasks = [Task(settings, round=number, total_rounds=4) for number in range(1, 5)]
    rates = [learning_rate(task, step, 50) for task in tasks for step in range(50)]
    assert rates[0] == pytest.approx(0.025)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert 0 < rates[-1] < 1e-3
    halfway = learning_rate(tasks[2], 0, 10**6)  # where round 3 of 4 begins
    assert halfway == pytest.approx(0.5 * (1 + math.cos(math.pi * (0.5 - 0.1) / 0.9)), abs=1e-5)


def test_rounds_see_the_examples_in_another_order() -> None:
    tasks = [Task(SETTINGS, round=number, seed=seed) for seed in (0, 1) for number in (1, 2)]
    assert len({task.order_seed for task in tasks}) == 4
    assert len({task.step_seed(step) for task in tasks for step in range(3)}) == 12


# How it stops.


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model = make_model("llama")
    parameters = last_block(model)
    base = values_of(parameters)
    base["top.0.mlp.up_proj.weight"][0, 0] = math.inf
    with pytest.raises(ConfigError, match=r"diverged at step 1 of 6: .* lower learning_rate"):
        tune(model, parameters, base, EXAMPLES, Task(SETTINGS))


def test_an_adapter_that_does_not_change_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.Masters, "step", lambda masters, rate: None)
    with pytest.raises(ConfigError, match="tuning changed nothing"):
        run()


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_named(monkeypatch: pytest.MonkeyPatch, shortage: Exception) -> None:
    def refuse(masters: tuning.Masters, rate: float) -> None:
        raise shortage

    monkeypatch.setattr(tuning.Masters, "step", refuse)
    with pytest.raises(MachineError, match="not enough memory for 60 tokens at once"):
        run()


def fake_validation(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    queue = iter(losses)
    monkeypatch.setattr(tuning._Tuner, "_validate", lambda tuner: next(queue))


def test_an_early_stop_returns_the_best_values(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, local_steps=10, patience=2)
    states: list[dict[str, torch.Tensor]] = []
    step = tuning.Masters.step

    def spy(masters: tuning.Masters, rate: float) -> None:
        step(masters, rate)
        states.append(masters.copies())

    monkeypatch.setattr(tuning.Masters, "step", spy)
    fake_validation(monkeypatch, [9.0, 5.0, 4.0, 6.0, 4.5, 3.9, 1.0])
    tuned = run(settings=settings)
    assert tuned.metrics.stopped_early
    assert tuned.metrics.steps == 4
    base = values_of(last_block(make_model("llama")))
    for name, change in tuned.delta.items():
        assert torch.equal(change, states[1][name] - base[name])


def test_without_patience_it_runs_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_validation(monkeypatch, [1.0, 9.0])
    metrics = run().metrics
    assert (metrics.steps, metrics.stopped_early) == (6, False)
    assert (metrics.validation_before, metrics.validation_after) == (1.0, 9.0)


# How it resumes.


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written once it came."""


def checkpoint_in(folder: Path, *, plan: str = "a", data: str = "b") -> Checkpoint:
    return Checkpoint(folder / "tuning.safetensors", Binding(plan, data))


def kill_at(step: int) -> Callbacks:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return Callbacks(progress=progress)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint between all steps."""
    monkeypatch.setattr(tuning, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(tuning, "CHECKPOINT_SHARE", math.inf)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kills", [[1], [3], [2, 5]])
def test_a_killed_run_resumes_bit_for_bit(
    tmp_path: Path, family: str, dtype: torch.dtype, kills: list[int]
) -> None:
    whole = run(family, dtype=dtype)
    for step in kills:
        with pytest.raises(Killed):
            run(family, dtype=dtype, checkpoint=checkpoint_in(tmp_path), callbacks=kill_at(step))
    seen: list[int] = []
    callbacks = Callbacks(progress=lambda done, total: seen.append(done))
    resumed = run(family, dtype=dtype, checkpoint=checkpoint_in(tmp_path), callbacks=callbacks)
    assert_equal(resumed, whole)
    assert seen[0] == max(kills[-1] - 1, 1)  # the step at which it was killed is done again


@pytest.mark.usefixtures("eager")
def test_a_killed_run_with_early_stop_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, local_steps=10, patience=3)
    fake_validation(monkeypatch, [9.0, 5.0, 4.0, 6.0, 6.0, 6.0, 4.0])
    whole = run(settings=settings)
    fake_validation(monkeypatch, [9.0, 5.0, 4.0, 6.0])
    with pytest.raises(Killed):
        run(settings=settings, checkpoint=checkpoint_in(tmp_path), callbacks=kill_at(4))
    fake_validation(monkeypatch, [6.0, 6.0, 4.0])
    assert_equal(run(settings=settings, checkpoint=checkpoint_in(tmp_path)), whole)


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path: Path) -> None:
    whole = run()
    asked = iter([False, False, True])

    def stop_if_asked() -> None:
        if next(asked, False):
            raise KeyboardInterrupt

    statuses: list[str] = []
    callbacks = Callbacks(status=statuses.append, between_steps=stop_if_asked)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint_in(tmp_path), callbacks=callbacks)
    assert_equal(run(checkpoint=checkpoint_in(tmp_path), callbacks=callbacks), whole)
    assert statuses == ["resuming at step 3 of 6"]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("other", [{"plan": "c"}, {"data": "c"}])
def test_a_checkpoint_of_another_plan_or_data_is_not_used(
    tmp_path: Path, other: dict[str, str]
) -> None:
    with pytest.raises(Killed):
        run(checkpoint=checkpoint_in(tmp_path), callbacks=kill_at(4))
    statuses: list[str] = []
    run(checkpoint=checkpoint_in(tmp_path, **other), callbacks=Callbacks(status=statuses.append))
    assert statuses == []


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Killed):
        run(checkpoint=checkpoint_in(tmp_path), callbacks=kill_at(4))
    path = checkpoint_in(tmp_path).path
    path.write_bytes(damage(path.read_bytes()))
    assert_equal(run(checkpoint=checkpoint_in(tmp_path)), run())


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", [DiskFullError, MachineError])
def test_a_full_disk_does_not_end_the_run_and_is_told_without_a_path(
    kind: type[MachineError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(checkpoint: Checkpoint, snapshot: object) -> None:
        raise kind(f"{checkpoint.path}: no room")

    monkeypatch.setattr(Checkpoint, "save", refuse)
    statuses: list[str] = []
    callbacks = Callbacks(status=statuses.append)
    assert run(checkpoint=checkpoint_in(tmp_path), callbacks=callbacks).metrics.steps == 6
    assert statuses == [NO_CHECKPOINT] * 5 and "/" not in NO_CHECKPOINT
    assert str(tmp_path) in caplog.text  # the owner's own log says where


def test_the_random_state_of_the_process_is_left_alone() -> None:
    model = make_model("gpt2")
    parameters = last_block(model)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    tune(model, parameters, values_of(parameters), EXAMPLES, Task(SETTINGS))
    assert torch.equal(torch.get_rng_state(), before)
