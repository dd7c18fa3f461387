"""Hostile inputs for every parser; the law is in `law.py`, what an input becomes in `mutations.py`."""
