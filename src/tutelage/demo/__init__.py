"""`tutelage demo`: generated notes of a clinic, two small models, and a recipe for each task."""
