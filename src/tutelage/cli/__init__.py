"""The command line, and the commands that need no module of their own elsewhere. Imports everything."""
