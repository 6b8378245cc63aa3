"""What every training here is made of: rows, batches, the loss, fp32 masters, one loop.

The edge tunes its adapter with it, the owner distils, measures and attacks an emulator with it.
"""
