"""The learning rate of every training here: a linear warm-up, then a cosine down to zero."""

import math


def warmup_cosine(peak: float, warmup_share: float, done: float) -> float:
    """Return the rate where the share ``done`` (0 to 1) of a training is over."""
    if done < warmup_share:
        return peak * done / warmup_share
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup_share) / (1 - warmup_share)))
