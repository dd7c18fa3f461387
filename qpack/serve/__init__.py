"""Run a release, look at a running server, measure one."""
