"""Accountants: interpreters of mechanisms. One file each, and `view.py`, which makes them agree.

PLD is the figure of record. PRV and RDP (and a closed form where nothing is sampled) are computed
by other code from the same events, and a figure that they do not confirm is not reported. Only
`view.py` is for callers outside this folder. SciPy, dp_accounting and prv_accountant are imported
where they are used, since together they take longer than most commands.
"""
