"""The recipe: its schema, its YAML with line numbers, and the checks across fields. Imports utils and method."""
