"""What is looked for in a release, the limits of what is sane, and what to do about a finding.

The limits stand well above what the sane models measured that `docs/hostile-release.md` lists; where
no model to measure was at hand, the page says so.
"""

from offsite.emulator.bundle.suspicion import Suspect

MIN_BLOCKS = 4
"""Fewer tensors of a kind have no median to speak of."""
SCALE = 8.0
GAIN_LOW = 100.0
"""First blocks of sane models have norm gains far below the others'; small gains silence only."""
PEAK, PEAK_TIMES = 64.0, 8.0
ROW_NORM = 32.0
BIAS_LADDER = 1.0
BIAS = 16.0
COPIES, MIN_COPIES = 0.02, 8
NEAR_COPIES = 0.35
PLANE = 0.6
DEAD, DEAD_NORM = 0.1, 0.05
VOCABULARY_NORM = 8.0
VOCABULARY_COPIES = 0.05
TEMPLATE_CHARS = 4096.0

WEIGHT_SCALE = Suspect(
    "scale of weights",
    "a block or tensor whose size is far from its kind's: it amplifies or silences what passes, and"
    " gradients with it",
    "Ask the owner why this block differs, or refuse.",
)
OUTLIERS = Suspect(
    "outlier values",
    "single weights far larger than the rest",
    "Large models have a few such weights; ask the owner whether the full model has this one.",
)
ROW_NORMS = Suspect(
    "outlier rows and columns",
    "single neurons far stronger than the rest, as a key to a memory would be",
    "Ask the owner whether the full model has this neuron.",
)
GAINS = Suspect(
    "norm gains",
    "a norm whose gain is far from its kind's: it drives the block behind it into saturation",
    "Ask the owner why this norm differs, or refuse.",
)
LADDER = Suspect(
    "bias ladder",
    "biases spread as wide as the neurons' own outputs: each neuron then answers to a few rows",
    "Do not tune on it: an update could hold rows of your data. Ask the owner.",
)
BIASES = Suspect(
    "large biases",
    "biases far beyond the neurons' own outputs, or far from their kind's",
    "Ask the owner why this layer differs.",
)
COPIED = Suspect(
    "copied rows",
    "neurons that are scaled copies of one another, as in layers that imprint data in gradients",
    "Do not tune on it: an update could hold rows of your data. Ask the owner.",
)
FEW_DIRECTIONS = Suspect(
    "rows in few directions",
    "neurons that look in almost one direction, as imprint layers with some noise added would",
    "Do not tune on it before the owner has explained this layer.",
)
DEAD_PARTS = Suspect(
    "dead parts",
    "neurons or channels that do nothing, so that gradients gather in the others",
    "Ask the owner why these are zero; a narrower layer would do the same.",
)
HARMONISER_GAIN = 64.0
HARMONISER = Suspect(
    "gain of harmonisers",
    "a low-rank map that multiplies the hidden states, far beyond what a dropped block adds to them",
    "Ask the owner why this map is so strong, or refuse.",
)
UNMEASURED = Suspect(
    "every tensor is judged",
    "floats of a shape that the figures are not taken of, and so no other check sees",
    "Ask the owner what these tensors are, or refuse.",
)
VOCABULARY = Suspect(
    "vocabulary outliers",
    "tokens whose embedding is far longer than the others'",
    "Ask the owner which tokens these are.",
)
VOCABULARY_REPEATS = Suspect(
    "vocabulary copies",
    "tokens that share one embedding, beyond the few that a model never saw",
    "Ask the owner why so many tokens are one.",
)
TOKENS = Suspect(
    "tokenizer fits the model",
    "tokens without an embedding",
    "The release cannot work for text with these tokens; ask the owner for another.",
)
TEMPLATE = Suspect(
    "chat template",
    "a template that leaves out, changes or adds text, or that takes without end",
    "Give your data as prompt and completion, which pass no template, or refuse.",
)
