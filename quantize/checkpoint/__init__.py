"""Sources of models, and what their files say before anything is loaded."""
