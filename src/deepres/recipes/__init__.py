"""How nets are trained: recipes, which are frozen dataclasses, and the named ones."""
