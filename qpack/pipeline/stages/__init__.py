"""The stages of a build: a module for each, with the inputs of its key, its work, its title and its summary.

The definitions that a module names in `CODE`, and what they use, are in the stage's key; the rest of the module is in
no key (`qpack.pipeline.closure`). A build is given to them, and they import it for its type alone.
"""
