"""What a model configuration from the other side may say.

transformers turns some settings into code: `auto_map` imports Python, an attention implementation
or a kernel name downloads one, a quantisation configuration picks a back end. All of them are
strings or carry strings, so strings are allowed by name of the setting only, and only as one plain
word: no path, no address, no repository. Numbers are bounded, so that a model of absurd size is
refused before anything is allocated.

Making a configuration object is not free either: transformers writes out one label for each of
`num_labels`, one entry for each layer, and a packed list of GPT-Neo as often as it says. So labels
are refused, which a language model does not need, and counts of layers and repeats are bounded by
`MAX_BLOCKS`, those of heads by `MAX_HEADS`: some families make modules for each. That such counts
fit the tensors is demanded before anything is made of them (`construction`).
"""

import re
from collections.abc import Mapping, Sequence

from offsite.emulator.layer_map import MAX_BLOCKS
from offsite.emulator.strict_json import JsonObject, JsonValue
from offsite.secure.errors import PeerError

MAX_CONFIG_BYTES = 1 << 20

_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
MAX_HEADS = 4096
_MAX_SIZE = 1 << 24
_MAX_NUMBER = 1 << 53
_MAX_ITEMS = 10_000
_MAX_NESTING = 4

_STRING_KEYS = frozenset(
    re.findall(
        r"\w+",
        """
        activation activation_function afn architectures attention_layers attention_type
        attention_types attn_layers attn_type block_types classifier_activation conv_activation
        dense_act_fn dtype expert_selection_fn feed_forward_proj ff_activation hidden_act
        hidden_activation hidden_mamba_act indexer_types inference_state_dtype layer_types
        layers_block_type mamba_hidden_act mamba_ssm_cache_dtype mlp_hidden_act mlp_layer_types
        model_type mtp_layers_block_type name nemo_activation norm_type position_embedding_type
        rope_type scoring_func shared_expert_combination_strategy summary_activation
        summary_type time_step_init_scheme topk_method torch_dtype transformers_version type
        use_bidirectional_attention
        """,
    )
)
"""Settings of the decoders of transformers 5 whose values are words."""

_FORBIDDEN = re.compile(
    r"auto_map|implementation|kernels|kernel_config|quantization|custom|remote|peft"
)
_PER_LAYER = re.compile(r"layers|layer_types|block_types|attention_types|attn_type|pattern")
_HEAD_COUNTS = re.compile(r"heads|(^|_)n_head|_head$")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NEEDLESS = frozenset(
    {
        "attn_impl",
        "finetuning_task",
        "id2label",
        "init_device",
        "label2id",
        "num_labels",
        "problem_type",
    }
)
"""Settings that no release needs: `neutral_config` leaves them out and nobody may send them."""

_KERNEL_TYPES = frozenset({"mra", "rwkv", "yoso"})
"""Model types whose classes download a compiled kernel by themselves, whatever the config says."""

_PACKED = "attention_types"
"""GPT-Neo's list of layers, packed: `[[[type, ...], repeats], ...]`."""


def neutral_config(config: JsonObject) -> JsonObject:
    """The configuration without labels and private settings; some name the owner's folders."""
    return {
        key: neutral_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NEEDLESS and not key.startswith("_")
    }


def check_config(value: JsonValue, kept_blocks: int) -> JsonObject:
    """The configuration of an emulator of `kept_blocks` blocks, once nothing in it can surprise.

    Raises:
        PeerError: it names the setting that is refused.
    """
    if not isinstance(value, Mapping):
        raise PeerError("config.json: expected an object")
    if not isinstance(value.get("model_type"), str) or not value["model_type"]:
        raise PeerError("config.json: expected a model_type, found none")
    if value["model_type"] in _KERNEL_TYPES:
        raise PeerError(
            f"config.json: model_type {value['model_type']} is refused: its class downloads kernels"
        )
    _check_object(value, _MAX_NESTING)
    # Families name the count differently; the first of these names is the one that counts.
    for key in [key for key in _LAYER_COUNTS if key in value][:1]:
        if value[key] != kept_blocks:
            raise PeerError(
                f"config.json: expected {key} {kept_blocks} as in the layer map, found {value[key]}"
            )
    return value


def _check_object(value: JsonObject, nesting: int) -> None:
    for key, item in value.items():
        forbidden = key in _NEEDLESS or key.startswith("_") or _FORBIDDEN.search(key)
        if forbidden or not _WORD.fullmatch(key):
            raise PeerError(f"config.json: found {key[:64]!a}, a setting no release may make")
        if key == _PACKED:
            _check_packed(item)
        _check_value(key, item, nesting)


def _check_value(key: str, value: JsonValue, nesting: int) -> None:
    if isinstance(value, str):
        if key not in _STRING_KEYS or not _WORD.fullmatch(value):
            raise PeerError(
                f"config.json: found {key} = {value[:64]!a}; text is allowed in known settings"
                " only, and as one word"
            )
    elif isinstance(value, Mapping | Sequence):
        if nesting == 0 or len(value) > _MAX_ITEMS:
            raise PeerError(f"config.json: {key}: expected a small setting, found a huge one")
        if isinstance(value, Mapping):
            _check_object(value, nesting - 1)
        else:
            for item in value:
                _check_repeats(key, item)
                _check_value(key, item, nesting - 1)
    elif value is not None:
        _check_number(key, value)


def _check_packed(value: JsonValue) -> None:
    """The list that comes out is at most `MAX_BLOCKS` long."""
    total = 0
    for item in value if isinstance(value, list) else [value]:
        match item:
            case [list() as kinds, int() as repeats] if repeats >= 0:
                total += max(1, len(kinds)) * repeats
            case _:
                raise PeerError(f"config.json: {_PACKED}: expected [[type, ...], repeats]")
    if total > MAX_BLOCKS:
        raise PeerError(f"config.json: {_PACKED}: expected at most {MAX_BLOCKS}, found {total}")


def _check_repeats(key: str, item: JsonValue) -> None:
    """A number in a list of layers is the index of one, or says how often something repeats."""
    if _PER_LAYER.search(key) and isinstance(item, int) and abs(item) > MAX_BLOCKS:
        raise PeerError(f"config.json: {key}: expected at most {MAX_BLOCKS}, found {item!a:.64}")


def _check_number(key: str, value: float) -> None:
    is_size = key.endswith(("_size", "_dim", "_heads", "_rank")) or key.startswith(("num_", "n_"))
    limit = _MAX_SIZE if is_size else _MAX_NUMBER
    if key in _LAYER_COUNTS or key.endswith("_layers"):
        limit = MAX_BLOCKS
    elif _HEAD_COUNTS.search(key):
        limit = MAX_HEADS
    if abs(value) > limit:
        raise PeerError(f"config.json: {key}: expected at most {limit}, found {value!a:.64}")
