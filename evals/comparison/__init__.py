"""Artifact against baseline, release against release, and the verdict."""
