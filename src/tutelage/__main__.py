"""The `tutelage` command, also as `python -m tutelage`."""

import sys


def main() -> None:
    """Run the command. Ctrl-C while it is imported ends it as it does later: without a traceback."""
    try:
        from tutelage.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
