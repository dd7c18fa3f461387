"""What is asked of a running server: a module for each part of a model's evidence, with its question and its answer.

A part's key holds its question as data and the digest of its module's import closure, so what a module imports here is
what its evidence is made anew for.
"""
