"""What is wrong with a checkpoint or with this machine."""
