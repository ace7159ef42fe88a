"""What turns what clients send into tensors: text."""
