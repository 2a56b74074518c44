"""`python -m feynkac demo`, `gallery` and `sample "prompt"`: a language model, steered."""

import argparse
import sys

from . import cli


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a failed run, 2 for impossible arguments."""
    parser = argparse.ArgumentParser(prog="python -m feynkac", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cli.demo.add_to(commands)
    cli.gallery.add_to(commands)
    cli.sample.add_to(commands)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
