"""Which examples a step sees, in what order, and how they lie in micro-batches.

Notable decisions:

* One optimiser step is one logical batch of `batch_examples` examples. The order of an epoch
  sorts the examples by a hash of (seed, epoch, index): it is the same on every machine and in
  every version, and a cursor into it is nothing but the number of the step.
* Inside a logical batch the examples are sorted by length and packed into micro-batches of at
  most `micro_batch_tokens`, so little is padding, while which examples meet in a step stays
  random. The step's loss is the sum over all its learnt tokens divided by their number, so the
  split into micro-batches does not change it.
* Padding stands on the right, where causal attention never looks, so no attention mask is
  needed, and attention keeps its fast path. The last token of a row predicts nothing and is
  not fed.
* Examples of the validation split are chosen by a hash of their tokens: they stay the same in
  every round, however the rows are ordered, and a duplicate never lies on both sides.

Axes: ``B`` rows, ``T`` tokens, ``N`` learnt tokens of a micro-batch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from offsite.emulator.training.tokens import Example

PAD_ID = 0
"""Any id will do: nothing that is learnt ever sees it."""

_LEAST_FILL = 0.6
"""A row shorter than this share of the widest starts another micro-batch."""

_VALIDATION_DOMAIN = b"offsite/validation-split/1"


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Rows for one forward pass, and the learnt tokens with the positions that predict them."""

    ids: torch.Tensor
    """[B, T] int64, padded on the right."""
    rows: torch.Tensor
    """[N] int64."""
    columns: torch.Tensor
    """[N] int64."""
    targets: torch.Tensor
    """[N] int64; token ``targets[n]`` follows position ``rows[n], columns[n]``."""
    tokens: int
    """Tokens fed, without padding."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return it with its tensors on ``device``."""
        ids, rows, columns, targets = (
            tensor.to(device, non_blocking=True)
            for tensor in (self.ids, self.rows, self.columns, self.targets)
        )
        return MicroBatch(ids, rows, columns, targets, self.tokens)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the examples that train and of those held out."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def split(examples: Sequence[Example], share: float) -> Split:
    """Hold out ``share`` of the examples, rounded, as far as duplicates allow; never all."""
    keys = [_content_key(example) for example in examples]
    free = min(round(share * len(examples)), len(examples) - 1)
    held_out: set[bytes] = set()
    for key, count in sorted(Counter(keys).items()):
        if count > free:
            break
        held_out.add(key)
        free -= count
    train = tuple(index for index, key in enumerate(keys) if key not in held_out)
    validation = tuple(index for index, key in enumerate(keys) if key in held_out)
    return Split(train, validation)


def _content_key(example: Example) -> bytes:
    ids = example.ids.astype("<i4").tobytes()
    return hashlib.sha256(_VALIDATION_DOMAIN + ids).digest()


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the numbers below ``count`` in the order of one epoch."""
    prefix = f"offsite/epoch-order/1|{seed}|{epoch}|".encode()
    keys = [hashlib.sha256(prefix + index.to_bytes(8, "big")).digest() for index in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))


def logical_batch(count: int, batch_examples: int, seed: int, step: int) -> list[int]:
    """Return the indices of step ``step`` (from 0); a batch may straddle two epochs.

    Of fewer examples than a batch holds, each step sees all.
    """
    size = min(batch_examples, count)
    places = range(step * size, (step + 1) * size)
    return [epoch_order(count, seed, place // count)[place % count] for place in places]


def steps_of(count: int, batch_examples: int, epochs: float) -> int:
    """Return how many steps come nearest to ``epochs`` passes over ``count`` examples."""
    return max(1, round(epochs * count / min(batch_examples, count)))


def text_batches(rows: torch.Tensor, micro_batch_tokens: int) -> list[MicroBatch]:
    """Cut whole rows of text (B, T), whose every token is learnt, into micro-batches in order."""
    width = rows.shape[1] - 1
    size = max(1, micro_batch_tokens // width)
    return [_text_batch(part, width) for part in torch.split(rows, size)]


def _text_batch(rows: torch.Tensor, width: int) -> MicroBatch:
    row, column = torch.meshgrid(torch.arange(len(rows)), torch.arange(width), indexing="ij")
    targets = rows[:, 1:].flatten()
    return MicroBatch(rows[:, :-1], row.flatten(), column.flatten(), targets, len(targets))


def micro_batches(examples: Sequence[Example], micro_batch_tokens: int) -> list[MicroBatch]:
    """Pack ``examples`` by length; one that is larger than the bound lies alone."""
    return [pack(group) for group in packed_groups(examples, micro_batch_tokens)]


def packed_groups(examples: Sequence[Example], micro_batch_tokens: int) -> Iterator[list[Example]]:
    """Yield the examples of each micro-batch, the longest first."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda item: len(item.ids), reverse=True):
        width = len(group[0].ids) - 1 if group else 0
        full = (len(group) + 1) * width > micro_batch_tokens
        if group and (full or len(example.ids) - 1 < _LEAST_FILL * width):
            yield group
            group = []
        group.append(example)
    if group:
        yield group


def pack(group: Sequence[Example]) -> MicroBatch:
    """Lay examples, the longest first, into one matrix; row i is example i."""
    ids = np.full((len(group), len(group[0].ids) - 1), PAD_ID, np.int64)
    rows, columns, targets = [], [], []
    for row, example in enumerate(group):
        ids[row, : len(example.ids) - 1] = example.ids[:-1]
        positions = np.flatnonzero(example.learnt[1:])
        rows.append(np.full(len(positions), row, np.int64))
        columns.append(positions.astype(np.int64))
        targets.append(example.ids[positions + 1].astype(np.int64))
    return MicroBatch(
        torch.from_numpy(ids),
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate(columns)),
        torch.from_numpy(np.concatenate(targets)),
        sum(len(example.ids) - 1 for example in group),
    )
