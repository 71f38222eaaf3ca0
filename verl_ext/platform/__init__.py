"""The CPU platform of verl 0.9.1, and the few seams that cannot be reached through its registries."""
