"""How long a test waits before it takes something for hung. No claim about speed: busy machines are slow."""

from __future__ import annotations

PATIENCE = 300
"""Seconds: more than ten times what anything that is waited for took on two busy cores."""
