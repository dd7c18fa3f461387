"""The parts of a model's evidence: how each is measured on a running server, or read from the store.

A part's key holds its spec as data and the digest of the import closure of the modules that make it: a change of any
module imported there makes the evidence new.
"""
