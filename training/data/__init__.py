"""From files, tables and streams to batches, labelled and unlabelled."""
