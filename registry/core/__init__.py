"""Shared by all registries: the protocol, the bundle that is copied between them, atomic files."""
