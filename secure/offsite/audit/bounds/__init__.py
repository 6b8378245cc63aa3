"""Lower bounds on epsilon from what an attacker guessed right.

    one_run        many canaries, one run: (epsilon, delta)-DP, any mechanism      `steinke.py`
    f_dp           many canaries, one run: a whole trade-off curve, tighter        `f_dp.py`
    independent    one canary a run, many runs: Clopper-Pearson and Gaussian DP    `independent.py`

All of them hold for guesses that were fixed before the labels were known, and for no others: a
threshold that is chosen on the audited labels is wrong four times in ten at "95 %". What fixes them
is `offsite.audit.empirical.labels`. A small bound does not mean that a mechanism is private.

The functions are pure: counts in, a number out. They agree with JAX-Privacy's CanaryScoreAuditor
(`tests/vectors/audit_bounds`).
"""
