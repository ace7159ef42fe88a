"""What runs a model, one file per engine behind one small protocol."""
