"""The recipe: schema, YAML with line numbers, checks across fields, keys of earlier versions."""
