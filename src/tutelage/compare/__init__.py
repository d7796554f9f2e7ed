"""`tutelage compare`: methods x seeds x teachers on shared stages, their summary and page. Imports stages and below."""
