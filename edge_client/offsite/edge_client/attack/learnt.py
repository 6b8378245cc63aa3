"""Which examples the steps of a plain round saw: they alone are its members.

Rows that no step saw would dilute what is measured. A private round draws its rows in secret, and
nothing may depend on which; there all are members.
"""

from collections.abc import Sequence

from offsite.edge_client.task import Task
from offsite.emulator.training.batches import logical_batch, split
from offsite.emulator.training.tokens import Example


def learnt_examples(examples: Sequence[Example], task: Task, steps: int) -> frozenset[int]:
    """Places of the examples that the first so many steps of `tuning.tune` see.

    Guarantees: what was kept for validation is no member
    (`test_members_are_the_examples_that_steps_saw`).
    """
    train = split(examples, task.settings.validation_share).train
    size, seed = task.settings.batch_examples, task.order_seed
    return frozenset(
        train[place]
        for step in range(steps)
        for place in logical_batch(len(train), size, seed, step)
    )
