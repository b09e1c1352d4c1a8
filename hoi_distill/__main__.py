"""``python -m hoi_distill`` is the command ``hoi-distill``."""

from hoi_distill.pipeline.cli import main

if __name__ == "__main__":
    main()
