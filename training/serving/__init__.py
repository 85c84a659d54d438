"""Serves a classifier over HTTP: the service behind serve_hf.py."""
