"""One module for each kind of file: bytes to text, text to raw rows with their places."""
