"""`tutelage demo`: a clinic's notes from a seeded generator, two small models, and a recipe for each task."""
