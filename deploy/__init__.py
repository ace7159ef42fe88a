"""Ways to run warmfork."""
