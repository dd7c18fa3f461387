"""Checks of a checkpoint's files by subject, and repairs."""
