"""The stages of a run, one module each: they speak through the run folder and never import each other. Imports training
and below."""
