"""`tutelage predict`: answers of a model of a run to new rows, rendered and parsed exactly as in training."""
