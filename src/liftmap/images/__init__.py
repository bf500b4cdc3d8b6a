"""Images from wherever they lie to the model's input."""
