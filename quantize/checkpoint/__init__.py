"""Where models come from, and what their files say before anything is loaded."""
