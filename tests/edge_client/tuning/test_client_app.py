"""The edge's part of a round: what it obeys, what it refuses, and what leaves it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from tests.secure.aggregation.fleets import config
from tests.tiny import save_llama, write_completions
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from offsite.edge_client import secure_folder, tuning
from offsite.edge_client.client_app import (
    CHECKPOINT_NAME,
    ROUND_FOLDER,
    Listener,
    Machine,
    build_client_app,
)
from offsite.edge_client.data import DataReport, read_data
from offsite.edge_client.edge_limits import EdgeLimits
from offsite.edge_client.secure_folder import SecureFolder, erase_sums
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.manifest import ReleaseFacts
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.writer import Contents, write_bundle
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.rounds.exchange import read_exchange
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.instruction import (
    adapter_digest,
    adapter_to_record,
)
from offsite.emulator.rounds.messages import message_to_bytes
from offsite.emulator.rounds.plan import (
    ComputeDtype,
    RoundPlan,
    TuningSettings,
    plan_digest,
    sign_plan,
)
from offsite.emulator.rounds.vector import from_vector, schema_digest, value_count
from offsite.emulator.schema import spec_of
from offsite.secure import envelope as envelopes
from offsite.secure import limits
from offsite.secure.aggregation.fixed_point import FixedPoint, decode
from offsite.secure.aggregation.messages import Advertisement, opened
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import CONFIG_TYPE, RoundConfig
from offsite.secure.directory import Directory
from offsite.secure.errors import (
    ExpiredError,
    IntegrityError,
    OffsiteError,
    PeerError,
    PolicyError,
    SignatureError,
    StaleReleaseError,
    TermsRefusedError,
)
from offsite.secure.identity import IdentityKey

NOW = 1_800_000_000.0
COORDINATOR = IdentityKey.from_seed(bytes(range(32)))
IDENTITY = IdentityKey.from_seed(bytes(range(1, 33)))
AUTHORITY = IdentityKey.from_seed(bytes(range(2, 34)))
DIRECTORY = Directory()
FULL_WEIGHT = 46
TWO = PolicyFloor(least_cohort=2)
SETTINGS = TuningSettings(
    learning_rate=1e-3, local_steps=4, batch_examples=8, dtype=ComputeDtype.FLOAT32
)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Release:
    bundle: Bundle
    adapter: Tensors


@pytest.fixture(scope="module", params=list(AdapterKind), ids=lambda kind: kind.value)
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A random Llama that is its own emulator, with one slot at either end."""
    folder = tmp_path_factory.mktemp("release")
    save_llama(folder / "model", hidden=32, blocks=4)
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    layer_map = LayerMap.of(Placement(1, 1), 4, (1, 2))
    # Of rank 8: B alone learns too little by heart at rank 4 for an attack to be sure.
    spec = AdapterSpec(request.param, rank=8, alpha=16)
    adapter = make_adapter(spec, layer_map)
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    contents = Contents(model, model.config, layer_map, spec, tensors, tokenizer)
    facts = ReleaseFacts(
        "sky", 1, int(NOW), int(NOW) + 1000, "tiny", "ab" * 32, "uniform_drop", 1.0, {}
    )
    write_bundle(folder / "bundle", contents, facts, COORDINATOR)
    return Release(open_bundle(folder / "bundle", COORDINATOR.public, NOW), tensors)


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    set_task_identity(5, 9)
    yield


def plan_for(release: Release, **changes: object) -> RoundPlan:
    plan = RoundPlan(
        campaign_id=5,
        round=1,
        total_rounds=2,
        attempt=1,
        bundle_sha256=release.bundle.digest.hex(),
        adapter_sha256=adapter_digest(release.adapter),
        settings=SETTINGS,
        deadline_unix_s=NOW + 600,
        seed=3,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def instruction(
    plan: RoundPlan,
    adapter: Tensors,
    *,
    signer: IdentityKey = COORDINATOR,
    terms: RoundConfig | None = None,
) -> tuple[Message, bytes]:
    """An instruction, and the digest of the terms in it."""
    envelope = sign_plan(plan, signer)
    terms = terms or terms_for(plan, plan_digest(envelope), adapter)
    signed = envelopes.sign(CONFIG_TYPE, terms.to_bytes(), COORDINATOR)
    config = {
        "plan": envelopes.to_bytes(envelope),
        "terms": envelopes.to_bytes(signed),
        "server-round": plan.round,
    }
    content = RecordDict({"arrays": adapter_to_record(adapter), "config": ConfigRecord(config)})
    return Message(content, dst_node_id=9, message_type="train"), terms.digest


def terms_for(plan: RoundPlan, digest: bytes, adapter: Tensors) -> RoundConfig:
    """Terms of a sum for a plan, between this edge and another."""
    schema = {name: spec_of(tensor) for name, tensor in adapter.items()}
    return config(
        2,
        value_count(schema),
        campaign_id=str(plan.campaign_id),
        attempt=plan.attempt,
        binding=digest,
        schema_sha256=schema_digest(schema),
        full_weight=FULL_WEIGHT,
        fixed_point=FixedPoint.for_cohort(2, 16.0),
        deadlines_unix_s=(NOW * 2,) * 5,
    )


def app_for(
    release: Release,
    folder: Path,
    listener: Listener | None = None,
    clock: Callable[[], float] = lambda: NOW,
    policy: PolicyFloor = TWO,
) -> ClientApp:
    data = read_data(write_completions(folder / "data.jsonl"))
    machine = Machine(torch.device("cpu"))
    secure = secure_for(folder, clock, policy)
    return build_client_app(
        release.bundle, data, secure, folder / "work", listener=listener, machine=machine
    )


def secure_for(
    folder: Path,
    clock: Callable[[], float] = lambda: NOW,
    policy: PolicyFloor = TWO,
) -> SecureRounds:
    trust = Trust(COORDINATOR.public, AUTHORITY.public, lambda: DIRECTORY, lambda _: None, policy)
    return SecureRounds("clinic", IDENTITY, trust, folder / "secure", clock)


def call(app: ClientApp, message: Message, round_folder: Path | None = None) -> Message:
    node_config = {ROUND_FOLDER: str(round_folder)} if round_folder else {}
    return app(message, Context(5, 9, node_config, RecordDict(), {}))


@dataclass(frozen=True)
class Kept:
    """What an edge keeps of a sum, decoded."""

    delta: Tensors
    weight: float


def kept(release: Release, folder: Path, reply: Message, digest: bytes) -> Kept:
    """The update that a reply offers keys for: it lies on the edge and nowhere else."""
    assert read_exchange(reply)[0] == digest
    words = np.frombuffer((folder / "secure" / digest.hex() / "words").read_bytes(), "<u4")
    mean = decode(words.copy(), 1, FixedPoint.for_cohort(2, 16.0))
    return Kept(from_vector(mean.values, release.bundle.adapter_schema), mean.total_weight)


def test_an_instruction_is_answered_with_keys_and_nothing_of_the_update(
    release: Release, tmp_path: Path
) -> None:
    statuses: list[str] = []
    seen: list[int] = []
    listener = Listener(
        status=statuses.append,
        data=lambda report: seen.append(report.examples),
        tuned=lambda plan, metrics: seen.extend((metrics.steps, metrics.examples)),
    )
    message, digest = instruction(plan_for(release), release.adapter)
    reply = call(app_for(release, tmp_path, listener), message)
    found = kept(release, tmp_path, reply, digest)
    assert found.weight == pytest.approx(23 / FULL_WEIGHT)  # 24 rows, one held out
    assert found.delta.keys() == release.adapter.keys()
    assert any(bool(change.any()) for change in found.delta.values())
    assert seen == [24, 4, 23]
    assert statuses == ["encoding the data", "loading the emulator", "tuning, round 1 of 2"]
    # The reply: one record, the digest of the terms and a signed advertisement.
    assert set(reply.content) == {"secure"}
    _, body = read_exchange(reply)
    assert opened(Advertisement, body, IDENTITY.public).client_id == "clinic"
    assert len(message_to_bytes(reply)) < 8192


def test_a_plan_that_takes_more_memory_than_was_stated_is_said_to_this_edge_alone(
    release: Release, tmp_path: Path
) -> None:
    statuses: list[str] = []
    alone: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append, alone=alone.append))
    large = replace(SETTINGS, micro_batch_tokens=65_536)
    for attempt in (1, 2):
        plan = plan_for(release, settings=large, attempt=attempt)
        call(app, instruction(plan, release.adapter)[0])
        assert sum("than the" in line and "that the release states" in line for line in alone) == 1
    assert not any("MiB" in text for text in statuses)


def test_only_the_first_terms_of_an_attempt_get_an_update(release: Release, tmp_path: Path) -> None:
    """The same update in two sums, with one member more or less, would be that member's."""
    plan, app = plan_for(release), app_for(release, tmp_path)
    message, digest = instruction(plan, release.adapter)
    first = call(app, message)
    terms = terms_for(plan, plan_digest(sign_plan(plan, COORDINATOR)), release.adapter)
    others = replace(terms, round_id=b"2" * 16)
    again = instruction(plan, release.adapter, terms=others)[0]
    refuses(app, again, PolicyError, "one update to one sum")
    later = instruction(replace(plan, attempt=2), release.adapter)[0]
    call(app, later)
    refuses(app, message, PolicyError, "expected an attempt after .* attempt 2")
    assert read_exchange(first)[0] == digest


def test_once_a_sum_is_over_its_very_terms_get_nothing(release: Release, tmp_path: Path) -> None:
    """The latch is erased with the sum's folder; a second one would give the update away again."""
    app = app_for(release, tmp_path)
    message, digest = instruction(plan_for(release), release.adapter)
    call(app, message)
    erase_sums(tmp_path / "secure")  # what the end of a campaign does
    refuses(app, message, PolicyError, "while its sum lasts")
    assert not (tmp_path / "secure" / digest.hex()).exists()


def test_a_sum_that_was_killed_before_anything_left_is_begun_again(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, digest = instruction(plan_for(release), release.adapter)
    with monkeypatch.context() as patched:
        patched.setattr(secure_folder, "erase_sums", _killed)
        with pytest.raises(KeyboardInterrupt):
            call(app_for(release, tmp_path), message)
    assert (tmp_path / "secure" / "taken").exists()
    assert read_exchange(call(app_for(release, tmp_path), message))[0] == digest


def _killed(root: Path) -> None:
    raise KeyboardInterrupt


def test_a_sum_has_one_update(release: Release, tmp_path: Path) -> None:
    """Whoever calls: beginning a second time would reset the latch."""
    message, digest = instruction(plan_for(release), release.adapter)
    call(app_for(release, tmp_path), message)
    root, words = tmp_path / "secure", np.zeros(4, np.uint32)
    before = (root / digest.hex() / "words").read_bytes()
    with pytest.raises(PolicyError, match="not given a second one"):
        SecureFolder.begin(root, (5, 1, 1), digest, b"terms", bytes(32), words)
    assert (root / digest.hex() / "words").read_bytes() == before


def test_terms_for_another_plan_adapter_or_below_the_policy_are_refused(
    release: Release, tmp_path: Path
) -> None:
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    plan = plan_for(release)
    terms = terms_for(plan, plan_digest(sign_plan(plan, COORDINATOR)), release.adapter)
    for changes, match in (
        ({"binding": bytes(32)}, "for this plan"),
        ({"campaign_id": "6"}, "for this plan"),
        ({"attempt": 2}, "for this plan"),
        ({"values": terms.values + 1}, "for this adapter"),
        ({"schema_sha256": bytes(32)}, "for this adapter"),
    ):
        wrong = replace(terms, **changes)  # type: ignore[arg-type]
        refuses(app, instruction(plan, release.adapter, terms=wrong)[0], PeerError, match)
    strict = app_for(
        release, tmp_path, Listener(status=statuses.append), policy=PolicyFloor(least_cohort=3)
    )
    message = instruction(plan, release.adapter)[0]
    refuses(strict, message, TermsRefusedError, "at least 3 are demanded here")
    noisy = instruction(plan, release.adapter, terms=replace(terms, noise_sigma=1.0))[0]
    refuses(app, noisy, PolicyError, "promise noise")
    del message.content["config"]["terms"]
    refuses(app, message, PeerError, "signed terms of a secure sum, found none")
    assert statuses == []


def test_killed_after_tuning_an_edge_offers_the_same_keys_and_does_not_tune_again(
    release: Release, tmp_path: Path
) -> None:
    message, _ = instruction(plan_for(release), release.adapter)
    first = read_exchange(call(app_for(release, tmp_path), message))
    statuses: list[str] = []
    again = call(app_for(release, tmp_path, Listener(status=statuses.append)), message)
    assert (read_exchange(again), statuses) == (first, [])


def test_the_emulator_stays_warm_and_rounds_do_not_leak_into_each_other(
    release: Release, tmp_path: Path
) -> None:
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    message, digest = instruction(plan_for(release), release.adapter)
    first = kept(release, tmp_path, call(app, message, tmp_path / "1"), digest)
    call(app, instruction(plan_for(release, round=2), release.adapter)[0], tmp_path / "2")
    shutil.rmtree(tmp_path / "secure")  # as an edge that never took part
    again = kept(release, tmp_path, call(app, message, tmp_path / "3"), digest)
    assert statuses.count("loading the emulator") == 1
    assert statuses.count("encoding the data") == 1
    for name, change in first.delta.items():
        assert torch.equal(change, again.delta[name])


def test_a_killed_round_goes_on_after_a_restart(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(tuning, "CHECKPOINT_SHARE", float("inf"))
    message, digest = instruction(plan_for(release), release.adapter)
    reply = call(app_for(release, tmp_path), message, tmp_path / "a")
    whole = kept(release, tmp_path, reply, digest)
    shutil.rmtree(tmp_path / "secure")

    def die_at_step_3(done: int, total: int) -> None:
        if (done, total) == (3, 4):
            raise SystemExit

    with pytest.raises(SystemExit):
        call(app_for(release, tmp_path, Listener(progress=die_at_step_3)), message, tmp_path / "b")
    assert (tmp_path / "b" / CHECKPOINT_NAME).stat().st_mode & 0o777 == 0o600
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    resumed = kept(release, tmp_path, call(app, message, tmp_path / "b"), digest)
    assert "resuming at step 3 of 4" in statuses
    for name, change in whole.delta.items():
        assert torch.equal(change, resumed.delta[name])


def refuses(app: ClientApp, message: Message, error: type[OffsiteError], match: str) -> None:
    with pytest.raises(error, match=match):
        call(app, message)


def test_what_is_not_to_be_obeyed_is_refused_before_anything_is_loaded(
    release: Release, tmp_path: Path
) -> None:
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    plan, adapter = plan_for(release), release.adapter
    forged = instruction(plan, adapter, signer=IDENTITY)[0]
    refuses(app, forged, SignatureError, "signed by key")
    late = instruction(replace(plan, deadline_unix_s=NOW - 1), adapter)[0]
    refuses(app, late, ExpiredError, "deadline passed")
    other_release = instruction(replace(plan, bundle_sha256="cd" * 32), adapter)[0]
    refuses(
        app, other_release, StaleReleaseError, "expected the release .* fetch the release again"
    )
    name = next(iter(adapter))
    other_adapter = {key: value for key, value in adapter.items() if key != name}
    other_release = instruction(replace(plan, bundle_sha256="cd" * 32), other_adapter)[0]
    refuses(app, other_release, StaleReleaseError, "fetch the release again")
    changed = adapter | {name: adapter[name] + 1}
    refuses(app, instruction(plan, changed)[0], IntegrityError, "not the one that the plan names")
    missing = {key: value for key, value in adapter.items() if key != name}
    refuses(app, instruction(plan, missing)[0], PeerError, f"tensor {name} is missing")
    misshapen = adapter | {name: adapter[name].flatten()}
    refuses(app, instruction(plan, misshapen)[0], PeerError, f"tensor {name}: expected")
    empty = Message(RecordDict({"arrays": ArrayRecord()}), dst_node_id=9, message_type="train")
    refuses(app, empty, PeerError, "expected a config and arrays")
    assert statuses == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"micro_batch_tokens": 65_537}, "micro_batch_tokens: expected at most 65536, found 65537"),
        ({"max_tokens": 32_769}, "max_tokens: expected at most 32768, found 32769"),
        ({"local_steps": 10**9}, "local_steps: expected at most 1000000, found 1000000000"),
        ({"local_epochs": 1000.5}, "local_epochs: expected at most 1000, found 1000.5"),
    ],
)
def test_a_plan_that_asks_too_much_of_the_machine_is_refused_before_anything_is_loaded(
    release: Release, tmp_path: Path, changes: dict[str, float], match: str
) -> None:
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    refuses(
        app,
        instruction(plan_for(release, settings=settings), release.adapter)[0],
        PolicyError,
        match,
    )
    assert statuses == []


def test_a_deadline_too_far_ahead_is_refused(release: Release, tmp_path: Path) -> None:
    limit_s = NOW + 7 * 86_400
    plan = plan_for(release, deadline_unix_s=limit_s + 1)
    match = f"deadline_unix_s: expected at most {limit_s:.0f}, found {limit_s + 1:.0f}"
    refuses(app_for(release, tmp_path), instruction(plan, release.adapter)[0], PolicyError, match)
    EdgeLimits().check(replace(plan, deadline_unix_s=limit_s), NOW)


def test_a_release_serves_no_longer_than_it_is_valid(release: Release, tmp_path: Path) -> None:
    late_unix_s = NOW + 1000 + limits.CLOCK_SKEW_S + 1
    plan = plan_for(release, deadline_unix_s=late_unix_s + 600)
    app = app_for(release, tmp_path, clock=lambda: late_unix_s)
    message = instruction(plan, release.adapter)[0]
    refuses(app, message, ExpiredError, "the release has expired")


def test_an_adapter_that_is_not_finite_is_refused(release: Release, tmp_path: Path) -> None:
    name = next(iter(release.adapter))
    broken = release.adapter | {name: torch.full_like(release.adapter[name], float("nan"))}
    plan = plan_for(release, adapter_sha256=adapter_digest(broken))
    message, _ = instruction(plan, broken)
    refuses(app_for(release, tmp_path), message, PeerError, f"{name}.*NaN")


def test_nobody_tunes_past_the_deadline(release: Release, tmp_path: Path) -> None:
    times = iter([NOW, NOW, NOW + 300, NOW + 601])
    app = app_for(release, tmp_path, clock=lambda: next(times))
    message, _ = instruction(plan_for(release), release.adapter)
    refuses(app, message, ExpiredError, "deadline passed while tuning")


def test_a_wish_to_stop_is_heard_between_steps(release: Release, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    message, _ = instruction(plan_for(release), release.adapter)
    with pytest.raises(KeyboardInterrupt):
        call(app_for(release, tmp_path, Listener(between_steps=stop)), message)


def test_no_status_tells_where_files_lie(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every status may go to the coordinator with the pulse."""
    monkeypatch.setattr(tuning, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(tuning, "CHECKPOINT_SHARE", float("inf"))
    (tmp_path / "round" / f"{CHECKPOINT_NAME}.part").mkdir(parents=True)  # no checkpoint can be
    statuses: list[str] = []
    app = app_for(release, tmp_path, Listener(status=statuses.append))
    message, digest = instruction(plan_for(release), release.adapter)
    kept(release, tmp_path, call(app, message, tmp_path / "round"), digest)
    assert tuning.NO_CHECKPOINT in statuses
    assert not any(str(tmp_path) in text or "/" in text for text in statuses)


def test_a_bf16_round_keeps_fp32_updates(release: Release, tmp_path: Path) -> None:
    settings = replace(SETTINGS, dtype=ComputeDtype.BFLOAT16)
    message, digest = instruction(plan_for(release, settings=settings), release.adapter)
    update = kept(release, tmp_path, call(app_for(release, tmp_path), message), digest)
    assert any(bool((change.bfloat16() != change).any()) for change in update.delta.values())


def test_no_example_is_longer_than_the_model_admits(release: Release, tmp_path: Path) -> None:
    config = release.bundle.config | {"max_position_embeddings": 8}
    short = Release(replace(release.bundle, config=config), release.adapter)
    reports: list[DataReport] = []
    app = app_for(short, tmp_path, Listener(data=reports.append))
    call(app, instruction(plan_for(release), release.adapter)[0])
    assert reports[0].truncated_rows == 24
    assert reports[0].tokens == 24 * 8


def test_threads_are_set_only_if_asked_for(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    app_for(release, tmp_path)
    assert asked == []
    data = read_data(tmp_path / "data.jsonl")
    secure = secure_for(tmp_path)
    build_client_app(release.bundle, data, secure, tmp_path, machine=Machine(threads=3))
    assert asked == [3]
    assert "seed" not in repr(secure)
