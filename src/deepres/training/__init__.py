"""Training, resuming and evaluating."""
