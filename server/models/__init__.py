"""The model repository: what lies on disk, what it declares, what is loaded of it."""
