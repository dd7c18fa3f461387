"""A running vLLM server, and what is asked of it."""
