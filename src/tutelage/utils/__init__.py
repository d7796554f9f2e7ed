"""Files, terminal output, number formats and memory: small helpers that every package may use. Imports no other
package."""
