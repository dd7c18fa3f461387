"""The recipe: its sections as models, its file with positions, and what it asks of the evaluation."""
