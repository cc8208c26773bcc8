"""Replicas without devices: the engine's own ledger, policies and cost model, on simulated time."""
