"""Allocation rules, oracles, intervals and shares of variance; numpy only."""
