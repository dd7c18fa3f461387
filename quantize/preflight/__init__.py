"""What can't work, known before it starts."""
