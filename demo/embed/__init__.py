"""The demo model `embed`: what a sentence means, as 384 numbers, by all-MiniLM-L6-v2."""
