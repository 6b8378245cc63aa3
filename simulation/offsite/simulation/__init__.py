"""Campaigns of many clients on one machine, in simulated time: `coordinator simulate`."""
