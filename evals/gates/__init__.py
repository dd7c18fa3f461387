"""Gates: bounds on figures, answered with pass, fail or undecided."""
