"""tudsr runtime."""
