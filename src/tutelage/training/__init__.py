"""One trainer for teacher, anchor and student, and the stages of a distilled student. Imports teacher and below."""
