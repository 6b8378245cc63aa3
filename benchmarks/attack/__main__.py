"""Tunes and attacks both adapters; see the package."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import benchmarks.attack
from benchmarks.attack.adapters import MICRO_BATCH_TOKENS, Tensors, by_heart, noise_of, private
from benchmarks.attack.scene import ENTROPY, FULL, QUICK, Scale, Scene, make_scene
from benchmarks.transport.saying import say
from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.attack import Target, attack_adapter
from offsite.audit.attack.evidence import to_bytes
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.attack.verdict import Verdict
from offsite.emulator.progress import Report, silent

BY_HEART, PRIVATE = "by_heart", "private"
DELTA = 1e-5
SETTINGS = AttackSettings()


@dataclass(frozen=True, slots=True)
class Found:
    """An attack, and how long the tuning before it took."""

    attack: Attack
    tuning_s: float


def main() -> None:
    """Parses, tunes, attacks and sums up."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    scale = _scale(given)
    scene = make_scene(given.inputs, scale)
    noise = noise_of(scene, scale, given.epsilon, DELTA)
    say(
        what="scene",
        members=len(scene.rows.members),
        held_out=len(scene.rows.held_out),
        secrets=len(scene.rows.planted),
        steps=scale.steps,
        batch=scale.batch,
        epsilon=given.epsilon,
        delta=DELTA,
        noise_multiplier=noise,
    )
    report: Report = _counting if given.progress else silent
    ways: dict[str, Callable[[], Tensors]] = {
        BY_HEART: lambda: by_heart(scene, scale, report),
        PRIVATE: lambda: private(scene, scale, noise, report),
    }
    found = {
        name: _attacked(scene, name, given.out, tuned)
        for name, tuned in ways.items()
        if name in given.adapters
    }
    _sum_up({name: one.attack for name, one in found.items()}, given)


def _attacked(scene: Scene, name: str, out: Path | None, tuned: Callable[[], Tensors]) -> Found:
    started = time.monotonic()
    after = tuned()
    tuning_s = time.monotonic() - started
    found = Found(
        attack_adapter(
            Target(scene.model, scene.adapter, scene.before, after),
            scene.rows,
            SETTINGS,
            ENTROPY,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
        ),
        tuning_s,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_bytes(to_bytes(found.attack))
    _say_attack(name, found)
    return found


def _say_attack(name: str, found: Found) -> None:
    attack = found.attack
    membership, exposure, losses = attack.membership, attack.exposure, attack.measured.held_out
    advantage, low_rate = membership.advantage, membership.low_rate
    assert exposure is not None  # secrets are planted
    tokens = losses.before.tokens.sum()
    say(
        what="attack",
        adapter=name,
        verdict=attack.judgement.verdict.value,
        advantage=round(advantage.value, 4),
        low=round(advantage.low, 4),
        high=round(advantage.high, 4),
        auc=round(membership.area.value, 4),
        auc_low=round(membership.area.low, 4),
        auc_high=round(membership.area.high, 4),
        p_value=membership.p_value,
        score=membership.score.value,
        tpr_at_low_fpr="too few rows"
        if low_rate is None
        else round(low_rate.true_positives.value, 4),
        exposure_bits=round(exposure.mean_bits.value, 3),
        exposure_p=exposure.p_value,
        held_out_before=round(losses.before.nats.sum() / tokens, 4),
        held_out_after=round(losses.after.nats.sum() / tokens, 4),
        tuning_s=round(found.tuning_s, 1),
    )


def _sum_up(found: Mapping[str, Attack], given: argparse.Namespace) -> None:
    goals: dict[str, bool] = {}
    if BY_HEART in found:
        first = found[BY_HEART]
        goals["by_heart_is_held_back"] = (
            first.judgement.verdict is Verdict.EXCEEDED and first.membership.advantage.low > 0
        )
    if PRIVATE in found:
        second = found[PRIVATE].membership
        goals["private_is_not_beyond_chance"] = (
            not second.is_beyond_chance(SETTINGS.confidence)
            and second.advantage.low <= 0 <= second.advantage.high
        )
    met = f"{sum(goals.values())} of {len(goals)}"
    say(what="summary", quick=given.quick, epsilon=given.epsilon, **goals, goals_met=met)


def _scale(given: argparse.Namespace) -> Scale:
    scale = QUICK if given.quick else FULL
    changes = {"members": given.members, "held_out": given.held_out, "steps": given.steps}
    return replace(scale, **{name: value for name, value in changes.items() if value})


def _counting(done: int, total: int) -> None:
    print(f"step {done} of {total}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attack", description=benchmarks.attack.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rows and steps: about five minutes")
    add("--inputs", type=Path, default=Path("build/inputs"), help="made when missing")
    add("--out", type=Path, help="write the evidence of both attacks into this folder")
    add(
        "--adapters",
        type=lambda text: text.split(","),
        default=[BY_HEART, PRIVATE],
        help="which of by_heart,private",
    )
    add("--epsilon", type=float, default=4.0)
    add("--members", type=int, help="rows that are tuned on")
    add("--held-out", type=int, help="rows that are not")
    add("--steps", type=int, help="of either adapter")
    add("--threads", type=int, default=1)
    add("--progress", action="store_true", help="count steps on standard error")
    return parser.parse_args()


if __name__ == "__main__":
    main()
