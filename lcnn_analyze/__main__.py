"""``python -m lcnn_analyze``: the ``lcnn`` command."""

from lcnn_analyze.cli.app import main

if __name__ == "__main__":
    main()
