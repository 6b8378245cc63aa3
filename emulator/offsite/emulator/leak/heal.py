"""The healing attack: a thief trains the emulator on public text and has a model of his own.

Half the blocks of a model can be removed and most of what that cost be won back with LoRA on public
text (arXiv 2403.17887); an emulator is such a model. So its own accuracy says little about what it
is worth to a thief; this does, for a stated compute.

Notable decisions, all in the attacker's favour at equal compute:

* LoRA on every linear layer but the output head: those of the compressed middle, of the slots and
  of harmonisers; alpha is twice the rank.
* A rate of 1e-3 with warm-up and cosine: ten times that of tuning whole blocks, for a short run.
* No dropout, no weight decay, full batches of whole rows; A and B are fp32.

It stays a lower bound: a thief with more text, more compute or a better idea gets more.

Rule: the model is afterwards what it was, bit for bit (`test_the_model_is_restored_bit_for_bit`);
its weights are never written to.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import MAX_RANK
from offsite.emulator.linear import linear_layers
from offsite.emulator.progress import Report, silent
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import text_batches
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.run import Recipe, train_in_parts
from offsite.emulator.training.text_rows import TextRows
from offsite.secure.errors import ConfigError

ATTACKER = "healing"
"""peft's name for the attacker's LoRA."""


@dataclass(frozen=True, slots=True)
class HealRecipe:
    """The attacker's compute and how it is used."""

    steps: int = 100
    tokens_per_step: int = 2048
    rank: int = 32
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    micro_batch_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"healing: rank is {self.rank}; expected 1 to {MAX_RANK}")

    @property
    def alpha(self) -> int:
        """The scale of the LoRA's product is alpha / rank."""
        return 2 * self.rank

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "rank": self.rank,
            "alpha": self.alpha,
            "learning_rate": self.learning_rate,
            "warmup_share": self.warmup_share,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Healing:
    """What an attack took, and its loss (nats per token)."""

    steps: int
    tokens: int
    epochs: float
    """Passes over the text; much above 1 the text is too short for the compute."""
    seconds: float
    trained_parameters: int
    first_loss: float
    last_loss: float


@contextmanager
def healed(
    model: PreTrainedModel,
    text: Sequence[torch.Tensor],
    recipe: HealRecipe,
    report: Report = silent,
) -> Iterator[Healing]:
    """The model after the attack, for as long as it is looked at.

    Args:
        model: an emulator with nothing attached.
        text: token batches (B, T) of public text, all of one T; rows of 512 are usual.

    Raises:
        ConfigError: there is too little text, an adapter is attached, or training diverged.
    """
    rows = TextRows.of(text, recipe.tokens_per_step, recipe.seed)
    with _low_rank(model, recipe) as parameters:
        yield _heal(model, parameters, rows, recipe, report)


def _heal(
    model: PreTrainedModel,
    parameters: dict[str, nn.Parameter],
    rows: TextRows,
    recipe: HealRecipe,
    report: Report,
) -> Healing:
    started = time.monotonic()
    schedule = Recipe(recipe.steps, recipe.learning_rate, recipe.warmup_share, seed=recipe.seed)
    parts_of = _language_loss(model, rows, recipe.micro_batch_tokens)
    losses = train_in_parts(parameters, parts_of, schedule, report)
    tenth = max(1, len(losses) // 10)
    return Healing(
        steps=recipe.steps,
        tokens=rows.tokens(recipe.steps),
        epochs=rows.tokens(recipe.steps) / rows.epoch_tokens,
        seconds=time.monotonic() - started,
        trained_parameters=sum(parameter.numel() for parameter in parameters.values()),
        first_loss=losses[0],
        last_loss=sum(losses[-tenth:]) / tenth,
    )


def _language_loss(
    model: PreTrainedModel, rows: TextRows, micro_batch_tokens: int
) -> Callable[[int], Iterable[torch.Tensor]]:
    """The mean -ln p of a step's tokens, in parts."""

    def parts_of(step: int) -> Iterator[torch.Tensor]:
        chosen = rows.step(step)
        learnt = chosen.shape[0] * (chosen.shape[1] - 1)
        for batch in text_batches(chosen, micro_batch_tokens):
            moved = batch.to(model.device)
            with attention_kernel(moved.ids, model.dtype):
                loss = summed_loss(model, moved) / learnt
            yield loss

    return parts_of


@contextmanager
def _low_rank(model: PreTrainedModel, recipe: HealRecipe) -> Iterator[dict[str, nn.Parameter]]:
    """LoRA beside the layers, whose parameters are the only ones that train; then as before."""
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ConfigError("healing: expected a model with nothing attached, found LoRA in it")
    was_training, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    targets = _targets(model)
    model.train(False)
    model.requires_grad_(False)
    try:
        _inject(model, targets, recipe)
        yield _attackers(model)
    finally:
        _remove(model)
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


def _targets(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [path for path, layer in linear_layers(model) if layer is not head]


def _inject(model: PreTrainedModel, targets: list[str], recipe: HealRecipe) -> None:
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=targets, bias="none")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft warns where it finds out by itself which way round a layer's weight lies.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set")
        torch.manual_seed(recipe.seed)  # of A; B is 0
        inject_adapter_in_model(config, model, ATTACKER)
    for parameter in _attackers(model).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def _attackers(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A and B of every layer, by name."""
    parameters = model.named_parameters()
    return {name: parameter for name, parameter in parameters if f".{ATTACKER}." in name}


def _remove(model: PreTrainedModel) -> None:
    """Put every layer back in the place of its LoRA, the very same object."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(False)
