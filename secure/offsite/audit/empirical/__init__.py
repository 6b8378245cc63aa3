"""`privacy-audit empirical`: attacks the real mechanism with canaries and bounds epsilon from below.

run.py             the protocol on one screen
plan.py            what will be done, fixed before the first run
mechanism.py       what a mechanism is to the audit; product.py: the product's own
claim.py           epsilon and the trade-off curve that it claims
crowd.py           many canaries in one run; language_model.py: in a real model
duel.py            one canary against the worst rest, in many small runs
scores.py          what a run's releases say about a canary
guesses.py         what was guessed, and how many guesses to make
labels.py          who is in: bound by a digest before, opened after the guesses are committed
evidence.py        all that a third party needs to count again
judgement.py       counts, bounds, verdict
report.py          the table
"""
