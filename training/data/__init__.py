"""Reads files, tables and streams, and makes labelled and unlabelled examples and batches."""
