"""The norms, a family to a file: arguments, checks, and a few lines of assembly."""
