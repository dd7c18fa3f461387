"""Looks into a checkpoint, whoever made it: one module for each kind of finding, each a pure function."""
