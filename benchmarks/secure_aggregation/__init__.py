"""What secure aggregation costs: `python -m benchmarks.secure_aggregation [--quick]`.

For every shape (clients n, values d) one real sum with 30 % of the clients dropping out after they
have shared their keys, the worst case for whoever unmasks: all parties in one process, no network.
The sum is compared word by word with that of the inputs.

Per shape two JSON lines:

    {"what": "offsite", ...}   masking per client (median over the survivors) and unmasking on the
                               server; beside each the bare time of writing the same bytes of the
                               same keystream into a buffer on the same number of threads, and the
                               ratio; set-up per client; bytes up and down per client
    {"what": "flower", ...}    the same vectors through Flower's own SecAgg+ primitives (quantize,
                               pseudo_rand_gen, create_shares, combine_shares), in the order in which
                               its client module and its server workflow call them: one client's
                               masking, and the server's unmasking of all

Flower's shares are combined in pure Python and take minutes for more than 100 clients; its lines
are left out there, and say so. Times are wall times: compare them within one run.
"""
