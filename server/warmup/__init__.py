"""Making a model warm, and proving that it is: the trial, the run, the proof, the rehearsal."""
