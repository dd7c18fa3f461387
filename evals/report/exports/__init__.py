"""A release's evaluation in the formats of other tools: each module gives files as {path: text}."""
