"""The engines: one module per engine, its worker in workers/, its locks in envs/."""
