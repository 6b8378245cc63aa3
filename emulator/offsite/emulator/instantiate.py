"""Building an emulator's architecture from a config and a tensor schema, without weights.

Notable decisions:

* The model is made on the meta device first and compared with the schema; only then it gets
  storage. A config that asks for more than the shipped tensors hold gets no weights. Making the
  config itself, and the modules, does take memory (lists of layers, labels, heads), in proportion
  to numbers in it: those are bounded before, in `bundle.config_rules` and `construction`.
* The linear layers of MLPs take the shapes of the schema, since width pruning makes them narrower
  than any config can say; wider ones are refused. A linear layer in a block is factored where the
  schema has its two matrices; blocks that the layer map repeats share the parameters of the first;
  harmonisers stand where the schema has theirs. Nothing else may differ from what the config
  describes.
* Tied weights stand once in a schema, under the name the model lists first (the embedding); the
  head is tied again when weights are loaded.
* Attention is forced to `sdpa`, or `eager` where a model cannot do that or caps its scores, which
  `sdpa` would ignore. A config can therefore not name a kernel that would be downloaded.

Rules: no `auto_map`, no quantised weights, no composite models, only model types that the
installed transformers knows.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from offsite.emulator.blocks import Blocks, find_blocks, in_attention, mlp_layers
from offsite.emulator.construction import bounded_modules, check_sizes
from offsite.emulator.factored import DOWN, UP
from offsite.emulator.harmoniser import add_harmonisers
from offsite.emulator.layer_map import first_positions
from offsite.emulator.linear import factor, features, linear_layers, resize
from offsite.emulator.methods.mlp import odd_input
from offsite.emulator.schema import TensorSpec
from offsite.emulator.weights import named_weights, replace_parameters
from offsite.secure.errors import ConfigError, PeerError

REFUSED_KEYS = frozenset({"auto_map", "quantization_config"})
IGNORED_KEYS = frozenset({"attn_implementation", "experts_implementation"})
MAX_BUFFER_BYTES = 1 << 30
"""Of what a model computes from its config alone: rotary tables, causal masks."""

INDEX_LISTS = frozenset({"mlp_only_layers"})
"""Config lists that hold block indices; every other list is per block if its name says so."""


def emulator_config(base_config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """The config of a model of the `kept` blocks (ascending) of the base model."""
    fields = base_config.to_dict()
    count_key = base_config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    base_blocks = base_config.num_hidden_layers
    if tuple(kept) != tuple(range(base_blocks)):
        _refuse_depth_dependence(fields)
    for key, value in fields.items():
        if isinstance(value, list) and "layer" in key:
            fields[key] = _kept_entries(key, value, kept, base_blocks)
    if "attention_types" in fields:  # GPT-Neo repeats its per-block list in a packed form
        fields["attention_types"] = [[[kind], 1] for kind in fields["attention_layers"]]
    fields[count_key] = len(kept)
    config = config_from_json(fields)
    config.use_cache = False
    return config


def _kept_entries(
    key: str, values: list[object], kept: Sequence[int], base_blocks: int
) -> list[object]:
    """The entries of a per-block list that belong to kept blocks."""
    if key in INDEX_LISTS:
        return [position for position, block in enumerate(kept) if block in values]
    return [values[block] for block in kept] if len(values) == base_blocks else values


def _refuse_depth_dependence(fields: Mapping[str, object]) -> None:
    """Blocks that compute with their own index would change when they are renumbered."""
    if fields.get("scale_attn_by_inverse_layer_idx"):
        raise ConfigError(
            "this model scales attention by the index of the block, so dropping or sharing blocks"
            " changes the ones that stay; use a method that keeps every block"
        )


def config_from_json(fields: Mapping[str, object]) -> PreTrainedConfig:
    """A config object of a known, plain, text-only model type.

    Raises:
        PeerError: a refused key, an unknown model type, or values the type does not take.
    """
    for key in sorted(REFUSED_KEYS & fields.keys()):
        if fields[key] is not None:
            raise PeerError(f"config: '{key}' is refused; expected a plain transformers model")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise PeerError(f"config: model_type {model_type!r} is unknown to this transformers")
    plain = {k: v for k, v in fields.items() if not k.startswith("_") and k not in IGNORED_KEYS}
    try:
        config = CONFIG_MAPPING[model_type].from_dict(plain)
    except Exception as error:  # whatever a foreign config makes the library raise
        raise PeerError(f"config of type {model_type}: {error}") from error
    if config.get_text_config() is not config or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PeerError(f"config: {model_type} is not a text-only decoder")
    return config


def attention_implementation(config: PreTrainedConfig) -> str:
    """The attention implementation that computes what the config describes."""
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "eager"
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def instantiate(
    config: Mapping[str, object],
    schema: Mapping[str, TensorSpec],
    dtype: torch.dtype | None = None,
    kept: Sequence[int] = (),
) -> PreTrainedModel:
    """A frozen model of zeros in the shapes of `schema`, ready for `bundle.weights.fill`.

    Args:
        config: the emulator's config as JSON.
        schema: every tensor of the emulator, tied and shared ones once.
        dtype: of all floating parameters.
        kept: the layer map's; blocks it repeats share their parameters. Empty: none does.

    Raises:
        PeerError: the config is refused, or it does not describe the tensors of the schema.
    """
    wanted = torch.float32 if dtype is None else dtype
    model = skeleton(config_from_json(config), schema, wanted, kept)
    replace_parameters(model, lambda _, old: torch.zeros(old.shape, dtype=wanted))
    return model


def skeleton(
    config: PreTrainedConfig,
    schema: Mapping[str, TensorSpec],
    dtype: torch.dtype,
    kept: Sequence[int] = (),
) -> PreTrainedModel:
    """The same model with its large parameters on the meta device; buffers are real."""
    blocks = config.num_hidden_layers
    if kept and len(kept) != blocks:
        raise PeerError(f"config: {blocks} blocks, but {len(kept)} in the layer map")
    if len(set(kept) or range(blocks)) > len(schema):
        raise PeerError(f"config: {blocks} blocks, but only {len(schema)} tensors")
    check_sizes(config, schema)
    first = first_positions(kept or range(blocks))
    _check_against(_construct(config, schema, dtype, first, torch.device("meta")), schema)
    model = _construct(config, schema, dtype, first, _EmptyOnMeta())
    model.train(False)
    model.requires_grad_(False)
    return model


class _EmptyOnMeta(TorchFunctionMode):
    """Puts uninitialised tensors on the meta device: weights, but not the buffers of a model."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _construct(
    config: PreTrainedConfig,
    schema: Mapping[str, TensorSpec],
    dtype: torch.dtype,
    first: Sequence[int],
    where: AbstractContextManager[object],
) -> PreTrainedModel:
    """The architecture, in the forms that the schema gives its blocks.

    `first` holds, for every block, the position of the one whose parameters it has.
    """
    try:
        with where, bounded_modules(len(first), len(schema)):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, attn_implementation=attention_implementation(config)
            )
    except Exception as error:  # whatever a foreign config makes the library raise
        raise PeerError(f"config of type {config.model_type}: {error}") from error
    blocks = _blocks_of(model, len(first))
    for position, block in enumerate(blocks.modules):
        if first[position] == position:
            _shape_block(blocks.name_of(position), block, schema)
    for position in range(len(first)):
        if first[position] != position:
            _share_block(blocks, position, first[position])
    hidden = getattr(config, "hidden_size", 0)
    add_harmonisers(model, blocks.modules, hidden, schema, dtype)
    return model


def _blocks_of(model: PreTrainedModel, count: int) -> Blocks:
    try:
        blocks = find_blocks(model)
    except ConfigError as error:
        raise PeerError(f"config: {error}") from error
    if len(blocks.modules) != count:
        raise PeerError(f"config: {count} blocks expected, {len(blocks.modules)} described")
    return blocks


def _shape_block(path: str, block: nn.Module, schema: Mapping[str, TensorSpec]) -> None:
    """Make the block's linear layers narrow or factored as in the schema; a wrong one stays."""
    before = [features(layer) for layer in mlp_layers(block).values()]
    for name, layer in list(linear_layers(block)):
        is_free = not in_attention(block, name)  # an attention's sizes are those of the config
        spec = schema.get(f"{path}.{name}.weight")
        down, up = (schema.get(f"{path}.{name}.{part}") for part in (DOWN, UP))
        if spec:
            if is_free and len(spec.shape) == 2 and spec.shape != tuple(layer.weight.shape):
                resize(layer, spec.shape)
        elif down and up and len(down.shape) == len(up.shape) == 2:
            inputs, outputs = (down.shape[1], up.shape[0]) if is_free else features(layer)
            parent, _, attribute = name.rpartition(".")
            factored = factor(f"{path}.{name}", layer, inputs, outputs, down.shape[0])
            setattr(block.get_submodule(parent), attribute, factored)
    after = [features(layer) for layer in mlp_layers(block).values()]
    sizes = zip(after, before, strict=True)
    is_wider = any(new[i] > old[i] for new, old in sizes for i in (0, 1))
    if after != before and (after[-1][1] != before[-1][1] or odd_input(after) or is_wider):
        raise PeerError(
            f"{path}: its MLP has (in, out) {after} in the schema, {before} by the config; expected "
            "the same, or fewer channels"
        )


def _share_block(blocks: Blocks, position: int, first: int) -> None:
    """Let a block compute with the parameters, and stored buffers, of an earlier one."""
    source, block = blocks.modules[first], blocks.modules[position]
    _shape_block(
        blocks.name_of(position),
        block,
        {
            f"{blocks.name_of(position)}.{name}": TensorSpec("", tuple(tensor.shape))
            for name, tensor in source.named_parameters()
        },
    )
    own, others = (
        {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        for module in (block, source)
    )
    if own != others:
        names = sorted(name for name, _ in own.items() ^ others.items())
        raise PeerError(
            f"block {position} repeats block {first}, but the config gives {names[0]} another shape"
        )
    for name in own:
        path, _, attribute = name.rpartition(".")
        tensor = getattr(source.get_submodule(path), attribute)
        setattr(block.get_submodule(path), attribute, tensor)


def _check_against(model: nn.Module, schema: Mapping[str, TensorSpec]) -> None:
    """The model must have exactly the names and shapes of the schema, and no large buffers."""
    buffer_bytes = sum(buffer.nbytes for buffer in model.buffers())
    if buffer_bytes > MAX_BUFFER_BYTES:
        raise PeerError(f"config: {buffer_bytes} bytes of buffers, at most {MAX_BUFFER_BYTES}")
    for name, _ in model.named_parameters():
        if name in schema and not schema[name].is_float:
            raise PeerError(f"tensor {name}: expected floats, found {schema[name].dtype}")
    found = {name: tuple(tensor.shape) for name, tensor in named_weights(model).items()}
    for name in sorted(found.keys() - schema.keys()):
        raise PeerError(f"tensor {name}: the config needs it, the schema does not have it")
    for name, spec in sorted(schema.items()):
        if name not in found:
            raise PeerError(f"tensor {name}: the schema has it, the config knows no such tensor")
        if found[name] != tuple(spec.shape):
            raise PeerError(
                f"tensor {name}: shape {list(spec.shape)} in the schema,"
                f" {list(found[name])} by the config"
            )
