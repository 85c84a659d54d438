"""Runs finished models over any number of recordings: inputs, parts and shards, hardware, tables."""
