"""From a recipe to a release: the plan, the stages, and commands that run them in other ways."""
