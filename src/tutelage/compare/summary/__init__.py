"""summary.json of a comparison, from results.jsonl and run folders; its table and page. No model, no torch."""
