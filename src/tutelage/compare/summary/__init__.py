"""summary.json of a comparison: made from results.jsonl and the run folders, shown as a table and as a page. Needs no
model, imports no torch."""
