"""Checks against a hostile release: tensors that were made to remember or to hand over data.

Notable:
- the limits come from what sane models measure (`docs/hostile-release.md` has the table), with
  room above it; a release is compared with itself: a tensor with the median of its kind over all
  blocks, a row with the median row of its matrix;
- figures alone decide; nothing of the release is run, but for the trial of its chat template;
- what is too small or too few to compare is said not to be judged.

Sources: Robbing the Fed (arXiv 2110.13057) and Decepticons (arXiv 2201.12675) for layers that copy
their input into gradients, PreCurious (arXiv 2403.09562) for releases that make tuning memorise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from offsite.emulator.bundle import suspects
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.first_adapter import adapter_checks
from offsite.emulator.bundle.statistics import HARMONISERS, Statistics, TensorStatistics
from offsite.emulator.bundle.suspicion import HostileCheck, Reading, judge
from offsite.emulator.bundle.template_probe import try_template

_TOO_FEW = f"fewer than {suspects.MIN_BLOCKS} blocks have tensors of one kind"
_TOO_SMALL = "no matrix is large enough"


def hostile_checks(bundle: Bundle, statistics: Statistics) -> list[HostileCheck]:
    """Every check, in the order in which it is shown."""
    return [
        *adapter_checks(bundle),
        *weight_checks(statistics, _block_names(bundle)),
        judge(suspects.HARMONISER, _harmoniser_gains(statistics), "there are none"),
        judge(suspects.UNMEASURED, [_unmeasured(bundle, statistics)]),
        *vocabulary_checks(statistics, bundle),
        _template_check(bundle),
    ]


def weight_checks(statistics: Statistics, names: Mapping[int, str]) -> list[HostileCheck]:
    """The checks of the tensors inside blocks, and of harmonisers.

    Args:
        names: of the blocks by their position in the emulator.
    """
    kinds = [*statistics.kinds().values(), *_harmonisers(statistics)]
    matrices = [group for group in kinds if group[0].is_matrix]
    vectors = [group for group in kinds if not group[0].is_matrix]
    gains = [group for group in vectors if not _is_bias(group[0])]
    biases = [group for group in vectors if _is_bias(group[0])]
    plain = [tensor for group in matrices for tensor in group if not _is_factor(tensor)]
    every = [tensor for group in matrices for tensor in group]
    place = _Places(names)
    return [
        judge(suspects.WEIGHT_SCALE, _scales(matrices, place, suspects.SCALE), _TOO_FEW),
        judge(suspects.OUTLIERS, _peaks(matrices, place), _TOO_FEW),
        judge(suspects.ROW_NORMS, _of_each(_row_norms, plain, place), _TOO_SMALL),
        judge(suspects.GAINS, _scales(gains, place, suspects.GAIN_LOW), _TOO_FEW),
        judge(suspects.LADDER, _ladders(biases, every, place), "the MLPs have no biases"),
        judge(suspects.BIASES, _biases(biases, every, place), "there are no biases to compare"),
        judge(suspects.COPIED, _of_each(_copies, every, place), _TOO_SMALL),
        judge(suspects.FEW_DIRECTIONS, _of_each(_directions, plain, place), _TOO_SMALL),
        judge(suspects.DEAD_PARTS, _of_each(_dead, plain, place), _TOO_SMALL),
    ]


def vocabulary_checks(statistics: Statistics, bundle: Bundle) -> list[HostileCheck]:
    """The checks of embeddings and heads."""
    tables = [t for t in statistics.outside() if t.is_matrix and HARMONISERS not in t.name]
    norms = [
        Reading(
            ratio,
            suspects.VOCABULARY_NORM,
            f"a row of {table.name} has {ratio:.3g} times the median",
        )
        for table in tables
        if (ratio := _times_median(table.row_norms)) is not None
    ]
    copies = [
        Reading(
            share,
            suspects.VOCABULARY_COPIES,
            f"{share:.2%} of the rows of {table.name} are repeated",
        )
        for table in tables
        for share in [table.repeated / table.rows_read]
    ]
    return [
        judge(suspects.VOCABULARY, norms, "there is no embedding"),
        judge(suspects.VOCABULARY_REPEATS, copies, "there is no embedding"),
        judge(suspects.TOKENS, _missing_tokens(bundle), "the configuration states no vocabulary"),
    ]


class _Places:
    """Where a tensor stands, in words."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names

    def __call__(self, tensor: TensorStatistics) -> str:
        if tensor.block is None:
            return tensor.name
        return f"{tensor.kind} of block {self._names.get(tensor.block, tensor.block)}"


_Readings = Callable[[TensorStatistics, str], Iterator[Reading]]


def _of_each(
    readings: _Readings, tensors: Iterable[TensorStatistics], place: _Places
) -> Iterator[Reading]:
    for tensor in tensors:
        yield from readings(tensor, place(tensor))


def _scales(
    kinds: Iterable[list[TensorStatistics]], place: _Places, low_limit: float | None
) -> Iterator[Reading]:
    """RMS against the median of the kind, either way, or only above it."""
    for group in kinds:
        median = float(np.median([tensor.rms for tensor in group]))
        if len(group) < suspects.MIN_BLOCKS or median == 0:
            continue
        for tensor in group:
            times = tensor.rms / median
            if times >= 1:
                yield Reading(
                    times, suspects.SCALE, f"{place(tensor)} is {times:.3g} times its kind"
                )
            elif low_limit is not None:
                less = min(1 / times, 1e9) if times else 1e9
                yield Reading(less, low_limit, f"{place(tensor)} is 1/{less:.3g} of its kind")


def _peaks(kinds: Iterable[list[TensorStatistics]], place: _Places) -> Iterator[Reading]:
    for group in kinds:
        if len(group) < suspects.MIN_BLOCKS:
            continue
        limit = max(
            suspects.PEAK, suspects.PEAK_TIMES * float(np.median([tensor.peak for tensor in group]))
        )
        for tensor in group:
            what = f"a weight of {place(tensor)} is {tensor.peak:.3g} times the RMS"
            yield Reading(tensor.peak, limit, what)


def _row_norms(tensor: TensorStatistics, place: str) -> Iterator[Reading]:
    for what, norms in (("row", tensor.row_norms), ("column", tensor.column_norms)):
        if (times := _times_median(norms)) is not None:
            yield Reading(
                times, suspects.ROW_NORM, f"a {what} of {place} is {times:.3g} times the median"
            )


def _copies(tensor: TensorStatistics, place: str) -> Iterator[Reading]:
    for what, found in (("rows", tensor.row_similarity), ("columns", tensor.column_similarity)):
        if found is None:
            continue
        share = found.copied_share if found.copies >= suspects.MIN_COPIES else 0.0
        text = f"{found.copies} of {found.compared} {what} of {place} are copies"
        yield Reading(share, suspects.COPIES, text)


def _directions(tensor: TensorStatistics, place: str) -> Iterator[Reading]:
    for what, found in (("rows", tensor.row_similarity), ("columns", tensor.column_similarity)):
        if found is None:
            continue
        near = f"{found.near_share:.1%} of the {what} of {place} are nearly copies"
        yield Reading(found.near_share, suspects.NEAR_COPIES, near)
        plane = f"{found.plane:.1%} of the {what} of {place} lie in two directions"
        yield Reading(found.plane, suspects.PLANE, plane)


def _dead(tensor: TensorStatistics, place: str) -> Iterator[Reading]:
    for what, norms in (("rows", tensor.row_norms), ("columns", tensor.column_norms)):
        typical = float(np.median(norms[norms > 0])) if norms.any() else 0.0
        share = float(np.mean(norms <= suspects.DEAD_NORM * typical))
        yield Reading(share, suspects.DEAD, f"{share:.1%} of the {what} of {place} are dead")


def _ladders(
    biases: Iterable[list[TensorStatistics]],
    matrices: Iterable[TensorStatistics],
    place: _Places,
) -> Iterator[Reading]:
    """The ninth decile of |bias| over what the neuron gives for a normed input, in MLPs."""
    for tensor, sizes in _bias_sizes(biases, matrices):
        if not _in_attention(tensor):
            decile = float(np.quantile(sizes, 0.9))
            what = f"a tenth of {place(tensor)} is above {decile:.3g} times the rows' norm"
            yield Reading(decile, suspects.BIAS_LADDER, what)


def _biases(
    biases: list[list[TensorStatistics]], matrices: list[TensorStatistics], place: _Places
) -> Iterator[Reading]:
    yield from _scales(biases, place, None)
    for tensor, sizes in _bias_sizes(biases, matrices):
        if not _in_attention(tensor):
            largest = float(sizes.max())
            what = f"a value of {place(tensor)} is {largest:.3g} times the rows' norm"
            yield Reading(largest, suspects.BIAS, what)


def _bias_sizes(
    biases: Iterable[list[TensorStatistics]], matrices: Iterable[TensorStatistics]
) -> Iterator[tuple[TensorStatistics, np.ndarray]]:
    """|bias| over the median norm of the weights of one output, where both are there."""
    weights = {tensor.name: tensor for tensor in matrices}
    for tensor in (tensor for group in biases for tensor in group):
        weight = weights.get(f"{tensor.name.removesuffix('.bias')}.weight")
        if weight is None or tensor.vector is None:
            continue
        by_rows = weight.spec.shape[0] == len(tensor.vector)
        typical = float(np.median(weight.row_norms if by_rows else weight.column_norms))
        if typical > 0:
            yield tensor, np.abs(tensor.vector) / typical


def _missing_tokens(bundle: Bundle) -> Iterator[Reading]:
    from tokenizers import Tokenizer

    from offsite.emulator.bundle.tokenizer_files import TOKENIZER

    rows = bundle.config.get("vocab_size")
    if isinstance(rows, int):
        vocabulary = Tokenizer.from_file(str(bundle.folder / TOKENIZER)).get_vocab()
        missing = sum(number >= rows for number in vocabulary.values())
        what = f"{missing} of {len(vocabulary)} tokens have no row among {rows}"
        yield Reading(missing, 0.0, what)


def _template_check(bundle: Bundle) -> HostileCheck:
    if "chat_template" not in bundle.tokenizer_settings:
        return judge(suspects.TEMPLATE, (), "there is none")
    trial = try_template(bundle.tokenizer_settings)
    if trial.problem:
        return judge(suspects.TEMPLATE, [Reading(1.0, 0.0, f"it {trial.problem}")])
    what = f"it adds {trial.added_chars} characters to a conversation of three messages"
    return judge(suspects.TEMPLATE, [Reading(trial.added_chars, suspects.TEMPLATE_CHARS, what)])


def _harmonisers(statistics: Statistics) -> list[list[TensorStatistics]]:
    """Their two factors, as two kinds."""
    found: dict[str, list[TensorStatistics]] = {}
    for tensor in statistics.outside():
        if tensor.name.startswith(f"{HARMONISERS}."):
            found.setdefault(tensor.name.split(".", 2)[-1], []).append(tensor)
    return list(found.values())


def _harmoniser_gains(statistics: Statistics) -> Iterator[Reading]:
    """How much longer a hidden state gets along the strongest of a map's directions."""
    ups = {t.name: t for t in statistics.outside() if t.name.endswith(".up.weight")}
    for down in statistics.outside():
        if not (down.name.startswith(f"{HARMONISERS}.") and down.name.endswith(".down.weight")):
            continue
        up = ups.get(down.name.replace(".down.", ".up."))
        if up is not None and len(down.row_norms) == len(up.column_norms):
            gain = float((down.row_norms * up.column_norms).max())
            position = down.name.split(".")[1]
            what = f"a direction before block {position} is multiplied by {gain:.3g}"
            yield Reading(gain, suspects.HARMONISER_GAIN, what)


def _unmeasured(bundle: Bundle, statistics: Statistics) -> Reading:
    """Integers are no weights (`check_architecture` refuses that), so they need no figure."""
    schema = bundle.schema.emulator
    names = [name for name in statistics.unmeasured if schema[name].is_float]
    what = f"{len(names)} tensors have no figures" + (f", {names[0][:64]} first" if names else "")
    return Reading(len(names), 0.0, what)


def _times_median(norms: np.ndarray) -> float | None:
    """The largest over the median of those above 0; None for fewer than 16."""
    above = norms[norms > 0]
    return float(above.max() / np.median(above)) if len(above) >= 16 else None


def _is_factor(tensor: TensorStatistics) -> bool:
    """One of the two matrices of a factored layer or harmoniser: its rows differ by design."""
    return tensor.name.endswith((".down.weight", ".up.weight"))


def _is_bias(tensor: TensorStatistics) -> bool:
    return tensor.name.endswith("bias")


def _in_attention(tensor: TensorStatistics) -> bool:
    return "attn" in tensor.name or "attention" in tensor.name


def _block_names(bundle: Bundle) -> dict[int, str]:
    layer_map = bundle.manifest.layer_map
    slots = {slot.emulator_block: f" ({slot.name})" for slot in layer_map.slots}
    return {i: f"{i}{slots.get(i, '')}" for i in range(len(layer_map.kept))}
