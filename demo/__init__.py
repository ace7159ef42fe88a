"""The demo model repository: real models, made on the spot, so that a fresh clone has something to serve."""
