"""The ``ray-sink`` command. It needs no Ray, and no module here imports anything heavy before a command runs."""

from ray_sink.cli.group import main

__all__ = ["main"]
