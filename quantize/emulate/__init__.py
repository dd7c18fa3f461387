"""An artifact's twin, for hardware where vLLM has no kernel for it."""
