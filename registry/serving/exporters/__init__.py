"""One module per format that a serving manifest is written in."""
