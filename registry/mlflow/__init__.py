"""Releases in an MLflow tracking server: a run with evidence, a registered model version, aliases."""
