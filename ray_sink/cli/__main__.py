"""``python -m ray_sink.cli``."""

from ray_sink.cli.group import main

if __name__ == "__main__":
    main(prog_name="ray-sink")
