"""`tutelage serve`: a student behind an HTTP API like OpenAI's; its teacher answers the rows it is unsure of."""
