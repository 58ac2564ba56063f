"""The trained weights that deepres publishes, with their cards."""
