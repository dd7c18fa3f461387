"""The commands, by what they are about. Each parses, calls and prints; it decides nothing.

Heavy modules are imported by the command that needs them, so that help and completion come at once.
"""
