"""What makes a stage's result: a module for each stage, whose import closure is in the stage's key.

A build is given to them, and they don't import it: what plans, reports and prints is in no key. What they read of the
plan is in the key as data.
"""
