"""Every check against hostile weights catches what it is for, and sane weights pass them all."""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from tests.emulator.bundle.test_statistics import measured, stored
from tests.emulator.conftest import MakeModel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from offsite.emulator.bundle import suspects
from offsite.emulator.bundle.hostile import weight_checks
from offsite.emulator.bundle.statistics import Sampling, measure
from offsite.emulator.bundle.suspicion import HostileCheck, Suspect, Verdict
from offsite.emulator.weights import named_weights

HIDDEN, MLP, BLOCKS = 64, 256, 6
Weights = dict[str, torch.Tensor]


def llama() -> Weights:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return {n: t.clone() for n, t in named_weights(LlamaForCausalLM(config)).items()}


def gpt2() -> Weights:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=HIDDEN, n_layer=BLOCKS, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.02)
    return {n: t.clone() for n, t in named_weights(model).items()}


def found(folder: Path, weights: Weights) -> dict[Suspect, HostileCheck]:
    checks = weight_checks(measured(folder, weights), {1: "1 (bottom.1)"})
    return {check.suspect: check for check in checks}


def block(weights: Weights, path: str, number: int = 1) -> torch.Tensor:
    return next(t for n, t in weights.items() if n.endswith(f".{number}.{path}"))


def imprint(weights: Weights) -> None:
    """Robbing the Fed and Decepticons: one measurement direction, a ladder of biases."""
    weight, bias = block(weights, "mlp.c_fc.weight"), block(weights, "mlp.c_fc.bias")
    direction = torch.randn(HIDDEN, 1)
    weight.copy_(direction.expand(HIDDEN, MLP * 1))
    quantiles = [NormalDist().inv_cdf((i + 1) / (MLP + 1)) for i in range(MLP)]
    bias.copy_(-direction.norm() * torch.tensor(quantiles))


def imprint_without_bias(weights: Weights) -> None:
    """The same for a model without biases: the ladder along a constant channel, in a tenth."""
    up = block(weights, "mlp.up_proj.weight")
    rows = up[:26]
    rows.copy_(torch.randn(HIDDEN) * torch.linspace(0.5, 2, 26)[:, None])


def noisy_imprint(weights: Weights) -> None:
    up = block(weights, "mlp.gate_proj.weight")
    up.copy_(torch.randn(HIDDEN) + 0.4 * torch.randn(MLP, HIDDEN))


def plane_imprint(weights: Weights) -> None:
    """Two directions under so much noise that no two rows are nearly copies."""
    basis = torch.linalg.qr(torch.randn(HIDDEN, 2)).Q.T
    rows = 1.7 * torch.nn.functional.normalize(torch.randn(MLP, 2), dim=1) @ basis
    block(weights, "mlp.up_proj.weight").copy_(rows + torch.randn(MLP, HIDDEN) / HIDDEN**0.5)


def amplified_slot(weights: Weights) -> None:
    for name, tensor in weights.items():
        if ".1.mlp" in name:
            tensor.mul_(12)


def moved_scale(weights: Weights) -> None:
    """The function stays, the gradients do not."""
    block(weights, "self_attn.v_proj.weight").mul_(20)
    block(weights, "self_attn.o_proj.weight").div_(20)


def silenced_block(weights: Weights) -> None:
    block(weights, "self_attn.o_proj.weight").zero_()
    block(weights, "mlp.down_proj.weight").zero_()


def dead_neurons(weights: Weights) -> None:
    block(weights, "mlp.up_proj.weight")[: MLP // 2] = 0


def one_weight(weights: Weights) -> None:
    block(weights, "mlp.up_proj.weight")[3, 5] = 40


def one_neuron(weights: Weights) -> None:
    block(weights, "mlp.gate_proj.weight")[7].mul_(100)


def one_channel(weights: Weights) -> None:
    block(weights, "mlp.down_proj.weight")[:, 9].mul_(100)


def loud_norm(weights: Weights) -> None:
    block(weights, "input_layernorm.weight").mul_(30)


def loud_bias(weights: Weights) -> None:
    block(weights, "mlp.c_fc.bias")[5] = 50


def loud_attention_bias(weights: Weights) -> None:
    block(weights, "attn.c_attn.bias").mul_(50)


def loud_harmoniser(weights: Weights) -> None:
    for number in range(4):
        weights[f"harmonisers.{number}.down.weight"] = torch.randn(4, HIDDEN)
        weights[f"harmonisers.{number}.up.weight"] = torch.randn(HIDDEN, 4)
    weights["harmonisers.2.up.weight"] *= 30


EXAMPLES: list[tuple[Callable[[], Weights], Callable[[Weights], None], list[Suspect]]] = [
    (gpt2, imprint, [suspects.COPIED, suspects.LADDER, suspects.FEW_DIRECTIONS]),
    (llama, imprint_without_bias, [suspects.COPIED]),
    (llama, noisy_imprint, [suspects.FEW_DIRECTIONS]),
    (llama, plane_imprint, [suspects.FEW_DIRECTIONS]),
    (llama, amplified_slot, [suspects.WEIGHT_SCALE]),
    (llama, moved_scale, [suspects.WEIGHT_SCALE]),
    (llama, silenced_block, [suspects.WEIGHT_SCALE, suspects.DEAD_PARTS]),
    (llama, dead_neurons, [suspects.DEAD_PARTS]),
    (llama, one_weight, [suspects.OUTLIERS]),
    (llama, one_neuron, [suspects.ROW_NORMS]),
    (llama, one_channel, [suspects.ROW_NORMS]),
    (llama, loud_norm, [suspects.GAINS]),
    (gpt2, loud_bias, [suspects.BIASES]),
    (gpt2, loud_attention_bias, [suspects.BIASES]),
    (llama, loud_harmoniser, [suspects.WEIGHT_SCALE]),
]


@pytest.mark.parametrize(
    ("make", "attack", "expected"), EXAMPLES, ids=[example[1].__name__ for example in EXAMPLES]
)
def test_a_hostile_release_is_found(
    make: Callable[[], Weights],
    attack: Callable[[Weights], None],
    expected: list[Suspect],
    tmp_path: Path,
) -> None:
    weights = make()
    attack(weights)
    checks = found(tmp_path, weights)
    for suspect in expected:
        assert checks[suspect].verdict is Verdict.FINDING, checks[suspect]
        worst = checks[suspect].worst
        assert worst is not None and worst.figure > worst.limit
        assert suspect.advice in checks[suspect].warning


@pytest.mark.parametrize("make", [llama, gpt2])
def test_sane_weights_are_clear(make: Callable[[], Weights], tmp_path: Path) -> None:
    checks = found(tmp_path, make())
    assert {check.verdict for check in checks.values()} <= {Verdict.CLEAR, Verdict.NOT_JUDGED}
    judged = {suspect for suspect, check in checks.items() if check.verdict is Verdict.CLEAR}
    biases = {suspects.LADDER, suspects.BIASES}
    assert judged == checks.keys() - (biases if make is llama else set())


def test_random_models_of_every_family_are_clear(
    make_model: MakeModel, family: str, tmp_path: Path
) -> None:
    checks = found(tmp_path, dict(named_weights(make_model(family))))
    findings = [check for check in checks.values() if check.verdict is Verdict.FINDING]
    assert findings == []


def test_the_place_is_named(tmp_path: Path) -> None:
    weights = llama()
    one_neuron(weights)
    check = found(tmp_path, weights)[suspects.ROW_NORMS]
    assert "a row of mlp.gate_proj.weight of block 1 (bottom.1) is" in check.warning


def test_too_few_blocks_are_not_judged(tmp_path: Path) -> None:
    weights = {n: t for n, t in llama().items() if not any(f".{i}." in n for i in (3, 4, 5))}
    amplified_slot(weights)
    check = found(tmp_path, weights)[suspects.WEIGHT_SCALE]
    assert check.verdict is Verdict.NOT_JUDGED
    assert "fewer than 4 blocks" in check.warning


def test_a_copy_trap_is_found_in_the_drawn_rows_of_a_large_layer(tmp_path: Path) -> None:
    """Far more rows than are read; an imprint layer is still seen, whatever the seed."""
    torch.manual_seed(0)
    weights = {f"layers.{i}.mlp.up.weight": torch.randn(20_000, 32) for i in range(4)}
    weights["layers.2.mlp.up.weight"][::10] = torch.randn(32) * torch.rand(2000, 1)
    path, schema = stored(tmp_path, weights)
    for seed in range(3):
        statistics = measure(path, schema, Sampling(seed, 100_000))
        checks = {check.suspect: check for check in weight_checks(statistics, {})}
        assert checks[suspects.COPIED].verdict is Verdict.FINDING
